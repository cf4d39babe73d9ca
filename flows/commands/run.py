"""`deeplab run segment|train|evaluate|refresh`: a flow here and now, as the served one would run."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from flows.commands.arguments import options_of
from flows.commands.evaluate import draw, evaluate, evaluate_options
from flows.commands.segment import DONE, FAILED, TOO_MANY_ERRORS, print_summary, segment, segment_options
from flows.commands.serve import parse_settings, require_server
from flows.terminal import print_json, stderr, stdout

INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    help="""Run a flow here and now and print its final state.

    With PREFECT_API_URL set the run is seen on that server's page and can be cancelled there; without it a server of
    its own lives as long as the command.""",
)


def here(flow: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    """Run a flow in this process; (its final state, exit code). Ctrl-C and a cancellation end it as Cancelled."""
    from prefect import tags
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():
        require_server()
    from flows.cancelled import mark_cancelled, was_stopped

    run_id = None

    def remember(flow: Any, run: Any, state: Any) -> None:
        nonlocal run_id
        run_id = run.id

    flow = flow.with_options(on_running=[remember])  # type: ignore[attr-defined]
    try:
        with tags("deeplab"):
            state = flow(*arguments, return_state=True)
    except BaseException as error:
        if not was_stopped(error):
            raise
        return mark_cancelled(run_id), INTERRUPTED
    return state, exit_code(state)


def exit_code(state: Any) -> int:
    """0 for a completed run, 3 where too many images became error rows, 1 for every other end."""
    from pipelines.segment import TooManyErrors

    if state.is_completed():
        return DONE
    reason = state.result(raise_on_failure=False)
    return TOO_MANY_ERRORS if isinstance(reason, TooManyErrors) else FAILED


def tell(state: Any, code: int) -> None:
    """The final state as one line: on stdout when it completed, on stderr otherwise."""
    if code == DONE:
        stdout.print(f"[green]{state.name}[/]: {escape(state.message or '')}")
    else:
        stderr.print(f"[red]{state.name}[/]: {escape(state.message or '')}", soft_wrap=True)


@app.command("segment")
@functools.wraps(segment)
def run_segment(**given: Any) -> None:
    from flows.segment import segment_archive
    from pipelines.segment import Summary

    state, code = here(segment_archive, segment_options(given))
    if code == DONE:
        summary = state.result()
        if given["as_json"]:
            print_json({"state": state.name, **summary})
        else:
            print_summary(Summary(**summary))
    if not given["as_json"] or code != DONE:
        tell(state, code)
    raise typer.Exit(code)


def _print_and_exit(state: Any, code: int, as_json: bool) -> None:
    if code == DONE and as_json:
        print_json({"state": state.name, **state.result()})
    else:
        tell(state, code)
    raise typer.Exit(code)


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Registry = Annotated[str | None, typer.Option(help="Folder or s3:// prefix of the model registry.")]


@app.command("train")
def run_train(
    dataset: Annotated[str, typer.Argument(help="Folder with images/, labels/, classes.txt and SPLIT.txt.", show_default=False)],
    out: Annotated[
        str,
        typer.Argument(metavar="MODEL_OUT", help="Model folder; an unfinished training in it is gone on with.", show_default=False),
    ],
    preset: Annotated[str, typer.Option(help="Training preset.")] = "finetune",
    init: Annotated[str, typer.Option(help="Weights to start from.")] = "pets",
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    val_split: Annotated[str, typer.Option(help="Split to choose and compare on.")] = "val",
    name: Annotated[str | None, typer.Option(help="Name in the model card.")] = None,
    steps: Annotated[int | None, typer.Option(help="Override the preset's steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Override the preset's batch size.")] = None,
    crop: Annotated[int | None, typer.Option(help="Override the preset's crop.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Override the preset's learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Override the preset's seed.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    loaders: Annotated[int, typer.Option(help="Processes that load images.")] = 1,
    workers: Annotated[int, typer.Option(help="Processes that train together, through Ray.")] = 1,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to train on: host:port, or http://host:8265 as a job; none starts Ray here.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the data, for the model card.")] = "not stated",
    registry: Registry = None,
    alias: Annotated[str, typer.Option(help="Alias that moves to the model if its mIoU is not worse.")] = "production",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other option of `deeplab train`, as name=JSON. Repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train, measure on VAL_SPLIT and register: the alias moves if the new model is not worse there."""
    from flows.train import train_model
    from pipelines.jobs import TrainOptions

    options = options_of(TrainOptions, run_train, locals(), parse_settings(settings or []))
    _print_and_exit(*here(train_model, options), as_json)


@app.command("evaluate")
@functools.wraps(evaluate)
def run_evaluate(**given: Any) -> None:
    from flows.evaluate import evaluate_model

    state, code = here(evaluate_model, evaluate_options(given))
    if code == DONE and given["plots"] is not None:
        draw(state.result(), given["plots"])
    _print_and_exit(state, code, given["as_json"])


@app.command("refresh")
def run_refresh(
    archive: Annotated[str, typer.Argument(help="Archive to bring the table up to date with.", show_default=False)],
    results: Annotated[str, typer.Argument(help="Results table.", show_default=False)],
    model: Annotated[str, typer.Option("--model", "-m", help="Usually REGISTRY@ALIAS.")] = "pets",
    train: Annotated[str | None, typer.Option(help="JSON file with the options of a training to do first.")] = None,
    as_json: Json = False,
) -> None:
    """Train if asked, then segment what is new or changed with the registered model."""
    from flows.refresh import refresh
    from pipelines.jobs import TrainOptions
    from pipelines.options import SegmentOptions

    training = None
    if train is not None:
        try:
            given = dict(json.loads(Path(train).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise typer.BadParameter(f"{train}: not a JSON object of training options ({error})", param_hint="--train") from error
        training = options_of(TrainOptions, run_train, {}, given, f"--train {train}:")
    chosen = options_of(SegmentOptions, run_refresh, {"archive": archive, "results": results, "model": model})
    _print_and_exit(*here(refresh, chosen, training), as_json)
