"""A command's arguments become options; what is out of bounds is told as it is named on the command line, all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_type_hints

import typer
from pydantic import BaseModel, ValidationError
from rich.markup import escape
from typer.models import ArgumentInfo, OptionInfo

from flows.terminal import stderr

USAGE = 2
Options = TypeVar("Options", bound=BaseModel)


def options_of(
    kind: type[Options],
    command: Callable[..., Any],
    given: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    source: str = "--set",
) -> Options:
    """`kind` from what `command` was given, as far as it knows it, and from all of `settings` (of `source`), which go first.

    What is refused is a line each on stderr, and exit code 2.
    """
    try:
        return kind(**{**{name: value for name, value in given.items() if name in kind.model_fields}, **(settings or {})})
    except ValidationError as error:
        # The first of an option's problems; others, such as too few numbers because one is none, follow from it.
        problems = {str(problem["loc"][0]): problem for problem in reversed(error.errors())}
        for name, problem in reversed(problems.items()):
            place = f"{source} {name}" if name in (settings or {}) else _on_the_command_line(command, name)
            stderr.print(f"[red]error[/]: {escape(place)}: {escape(_reason(kind, name, problem))}", soft_wrap=True)
        raise typer.Exit(USAGE) from None


def _reason(kind: type[BaseModel], name: str, problem: Mapping[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return f"there is no such option; nearest: {get_close_matches(name, kind.model_fields, n=1, cutoff=0.0)[0]}"
    if problem["type"] == "missing":
        return "is needed"
    return f"{problem['msg'].removeprefix('Value error, ')} (got {problem['input']!r})"


def numbers(text: str) -> tuple[str, ...]:
    """The parts of a list with commas; the options make numbers of them, or refuse them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _on_the_command_line(command: Callable[..., Any], name: str) -> str:
    """How a person types an option of `command`: --max-error-rate, or RESULTS."""
    for info in get_args(get_type_hints(command, include_extras=True).get(name)):
        if isinstance(info, ArgumentInfo):
            return info.metavar or name.upper()
        if isinstance(info, OptionInfo):
            flags = [flag for flag in info.param_decls or () if flag.startswith("--")]
            return flags[0].split("/")[0] if flags else "--" + name.replace("_", "-")
    return name
