"""Options on the command line, made from pydantic models: parameters from a schema, and an instance from what was typed.

A required field is an argument, and so is one whose Spelling says so; every other field is an option. Values arrive as typed: only
the model parses and checks them. All bad values are refused at once.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from pydantic import BaseModel, ValidationError
from rich.markup import escape

from flows.console.terminal import stderr
from pipelines.options.shared import Spelling

USAGE = 2
MOST_SHOWN = 8  # choices in a help text; longer lists stand in the docs
NUMBERS = {"integer": "int", "number": "float"}
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
TYPES = {"string": "text", **NUMBERS}
Model = TypeVar("Model", bound=BaseModel)
Schema = Mapping[str, Any]

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Any option of the flow, as name=JSON; overrides other options. Repeatable.")
]


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` for typer: its parameter `options`, a pydantic model, is replaced by a parameter for each field of the model.

    Other parameters stay as they are; a parameter `settings`, of type Settings, overrides the fields.
    """
    hints = get_type_hints(command, include_extras=True)
    kind = hints["options"]
    others = {name: parameter for name, parameter in inspect.signature(command).parameters.items() if name != "options"}
    kept = [parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY) for name, parameter in others.items()]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        arguments = {name: values.pop(name) for name in others}
        command(options_of(kind, values, parse_settings(arguments.get("settings") or ())), **arguments)

    signature = inspect.Signature([*parameters(kind), *kept])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return run


def parameters(kind: type[BaseModel]) -> Iterator[inspect.Parameter]:
    """The typer parameter of each field of a model: spelling, type, bounds, help and default."""
    for name, schema in kind.model_json_schema()["properties"].items():
        annotation, default = _parameter(kind, name, _without_null(schema))
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameter(kind: type[BaseModel], name: str, schema: Schema) -> tuple[Any, Any]:
    """Annotation and default of one field."""
    field = kind.model_fields[name]
    spelling, default, items = _spelling(kind, name), field.default, schema.get("items")
    flag, text = place(kind, name), f"{_help(kind, name, items or schema)}."
    if is_argument(kind, name):
        needed = field.is_required()
        argument = typer.Argument(metavar=flag, help=text, show_default=not needed)
        return Annotated[str, argument], inspect.Parameter.empty if needed else default
    if schema["type"] == "boolean":
        return Annotated[bool, typer.Option(f"{flag}/--no-{flag[2:]}", help=text)], default
    if items and items["type"] == "string":
        return Annotated[list[str] | None, typer.Option(flag, help=f"{text} Repeatable.")], None
    flags = [flag, *([spelling.short] if spelling.short else [])]
    metavar = f"<{TYPES[items['type']]},...>" if items else f"<{TYPES[schema['type']]}>"
    return Annotated[str | None, typer.Option(*flags, metavar=metavar, help=text)], _typed(default)


def _help(kind: type[BaseModel], name: str, schema: Schema) -> str:
    """The field's description with other options as they are typed, and with choices or bounds that it does not name itself."""
    text = kind.model_fields[name].description or ""
    for other in kind.model_fields:
        text = text.replace(other, place(kind, other)) if "_" in other else text
    choices = schema.get("enum", ())
    if len(choices) <= MOST_SHOWN and not all(choice in text for choice in choices):
        return f"{text}: {', '.join(choices[:-1])} or {choices[-1]}"
    return f"{text}{_bounds(schema)}"


def is_argument(kind: type[BaseModel], name: str) -> bool:
    return kind.model_fields[name].is_required() or bool(_spelling(kind, name).argument)


def _spelling(kind: type[BaseModel], name: str) -> Spelling:
    return next((entry for entry in kind.model_fields[name].metadata if isinstance(entry, Spelling)), Spelling())


def _schema(kind: type[BaseModel], name: str) -> Schema:
    """The schema of one field, without its choice of None; empty for a name that is no field."""
    return _without_null(kind.model_json_schema()["properties"].get(name, {}))


def _without_null(schema: Schema) -> Schema:
    """The schema of a field without its choice of None."""
    choices = [choice for choice in schema.get("anyOf", ()) if choice.get("type") != "null"]
    return {**schema, **choices[0]} if choices else schema


def _bounds(schema: Schema) -> str:
    """The range of a number, in brackets."""
    parts = [f"{words} {_typed(schema[key])}" for key, words in BOUNDS.items() if key in schema]
    return f" ({' and '.join(parts)})" if parts else ""


def _typed(value: object) -> str | None:
    """A value as a person types it; None for an empty one."""
    if isinstance(value, tuple):
        return ",".join(f"{number:g}" for number in value) or None
    return None if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def options_of(
    kind: type[Model], typed: Mapping[str, Any], settings: Mapping[str, Any] | None = None, source: str = "--set"
) -> Model:
    """A model from what was typed (None: nothing) and from `settings`, which override it and came from `source`.

    Exits with code 2 and a line on stderr for each refused value.
    """
    values = {name: _parts(kind, name, value) for name, value in typed.items() if value is not None}
    try:
        return kind(**{**values, **(settings or {})})
    except ValidationError as error:
        # The first problem of each option; others follow from it, such as too few numbers because one could not be parsed.
        problems = {str(problem["loc"][0]): problem for problem in reversed(error.errors())}
        for name, problem in reversed(problems.items()):
            where = f"{source} {name}" if name in (settings or {}) else place(kind, name)
            stderr.print(f"[red]error[/]: {escape(where)}: {escape(_reason(kind, name, problem))}", soft_wrap=True)
        raise typer.Exit(USAGE) from None


def _parts(kind: type[BaseModel], name: str, value: Any) -> Any:
    """The parts of a comma-separated list; any other value as it is."""
    is_list = isinstance(value, str) and "items" in _schema(kind, name)
    return tuple(part.strip() for part in value.split(",") if part.strip()) if is_list else value


def _reason(kind: type[BaseModel], name: str, problem: Mapping[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return f"there is no such option; nearest: {get_close_matches(name, kind.model_fields, n=1, cutoff=0.0)[0]}"
    if problem["type"] == "missing":
        return "is needed"
    text = f"{problem['msg'].removeprefix('Value error, ')} (got {problem['input']!r})"
    items = _schema(kind, name).get("items", {})
    return f"{text}; numbers separated by ',' are accepted{_bounds(items)}" if items.get("type") in NUMBERS else text


def place(kind: type[BaseModel], name: str) -> str:
    """How a person types an option: --max-error-rate, or RESULTS."""
    if name in kind.model_fields and is_argument(kind, name):
        return _spelling(kind, name).argument or name.upper()
    return f"--{name.replace('_', '-')}"


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """The options in a list of name=JSON. BadParameter for one without "="."""
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise typer.BadParameter(f"{setting}: name=value is accepted", param_hint="--set")
        try:
            values[name.replace("-", "_")] = json.loads(text)
        except ValueError:
            values[name.replace("-", "_")] = text  # a plain word
    return values
