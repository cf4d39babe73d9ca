"""`deeplab run segment|train|evaluate|refresh`: run a flow in this process, as a served one would run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from flows.commands.evaluate import Plots, draw, evaluate, with_curve
from flows.commands.parameters import Json, Settings, options_of, with_options
from flows.commands.segment import DONE, FAILED, TOO_MANY_ERRORS, print_summary, require_archive, segment
from flows.commands.serve import require_server
from flows.console.signals import INTERRUPTED
from flows.console.terminal import print_json, stderr, stdout
from pipelines.options import EvaluateOptions, RegisteredTraining, SegmentOptions

if TYPE_CHECKING:
    from uuid import UUID

    from prefect import Flow
    from prefect.client.schemas.objects import FlowRun, State
    from pydantic import BaseModel

app = typer.Typer(
    no_args_is_help=True,
    help="""Run a flow here and now and print its final state.

    With PREFECT_API_URL set, the run is shown on that server and can be cancelled there. Without it, the command starts
    a server of its own and stops it at the end.""",
)


def here(flow: Flow[..., Any], *options: BaseModel | None) -> tuple[State[Any], int]:
    """Run a flow in this process; returns (final state, exit code). Ctrl-C and a cancellation end it as Cancelled."""
    from prefect import tags
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():
        require_server()
    from flows.serving.cancellation import mark_cancelled, was_stopped

    run_id: UUID | None = None

    def remember(flow: Flow[..., Any], run: FlowRun, state: State[Any]) -> None:
        nonlocal run_id
        run_id = run.id

    try:
        with tags("deeplab"):
            state = flow.with_options(on_running=[remember])(*options, return_state=True)
    except BaseException as error:
        if not was_stopped(error):
            raise
        return mark_cancelled(run_id), INTERRUPTED
    return state, exit_code(state)


def exit_code(state: State[Any]) -> int:
    """0 for a completed run, 3 if too many images became error rows, 1 for any other state."""
    from pipelines.segment.run import TooManyErrors

    if state.is_completed():
        return DONE
    error = state.result(raise_on_failure=False)
    return TOO_MANY_ERRORS if isinstance(error, TooManyErrors) else FAILED


def print_state(state: State[Any], code: int) -> None:
    """Print the final state as one line: on stdout if the run completed, else on stderr."""
    if code == DONE:
        stdout.print(f"[green]{state.name}[/]: {escape(state.message or '')}")
    else:
        stderr.print(f"[red]{state.name}[/]: {escape(state.message or '')}", soft_wrap=True)


@app.command("segment", help=segment.__doc__)
@with_options
def run_segment(options: SegmentOptions, as_json: Json = False) -> None:
    require_archive(options)
    from flows.segment import segment_archive
    from pipelines.segment.run import Summary

    state, code = here(segment_archive, options)
    if code == DONE and not as_json:
        print_summary(Summary(**state.result()))
    finish(state, code, as_json)


def finish(state: State[Any], code: int, as_json: bool) -> None:
    """Print the result as JSON or the final state as a line, and end the command with `code`."""
    if code == DONE and as_json:
        print_json({"state": state.name, **state.result()})
    else:
        print_state(state, code)
    raise typer.Exit(code)


@app.command("train")
@with_options
def run_train(options: RegisteredTraining, settings: Settings = None, as_json: Json = False) -> None:
    """Train, measure on --val-split and register; the alias moves if the new model is not worse there."""
    from flows.train import train_model

    finish(*here(train_model, options), as_json)


@app.command("evaluate", help=evaluate.__doc__)
@with_options
def run_evaluate(options: EvaluateOptions, plots: Plots = None, as_json: Json = False) -> None:
    from flows.evaluate import evaluate_model

    state, code = here(evaluate_model, with_curve(options, plots))
    if code == DONE and plots is not None:
        draw(state.result(), plots)
    finish(state, code, as_json)


@app.command("refresh")
@with_options
def run_refresh(
    options: SegmentOptions,
    train: Annotated[str | None, typer.Option(help="JSON file with the options of a training that runs first.")] = None,
    as_json: Json = False,
) -> None:
    """Train (with --train), then segment new and changed images with --model, usually REGISTRY@ALIAS."""
    require_archive(options)
    from flows.refresh import refresh

    training = None
    if train is not None:
        try:
            settings = dict(json.loads(Path(train).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise typer.BadParameter(f"{train}: not a JSON object of training options ({error})", param_hint="--train") from error
        training = options_of(RegisteredTraining, {}, settings, f"--train {train}:")
    finish(*here(refresh, options, training), as_json)
