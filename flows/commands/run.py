"""`deeplab run segment|train|evaluate|refresh`: a flow here and now, as the served one would run."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import typer
from rich.markup import escape

from flows import environment
from flows.commands.segment import DONE, FAILED, TOO_MANY_ERRORS, options_from, print_summary, segment
from flows.terminal import stderr, stdout

INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    help="""Run a flow here and now and print its final state.

    With PREFECT_API_URL set the run is seen on that server's page and can be cancelled there; without it a server of
    its own lives as long as the command.""",
)


def here(flow: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    """Run a flow in this process; (its final state, exit code). Ctrl-C and a cancellation end it as Cancelled."""
    from flows.cancelled import mark_cancelled, was_stopped

    run_id = None

    def remember(flow: Any, run: Any, state: Any) -> None:
        nonlocal run_id
        run_id = run.id

    flow = flow.with_options(on_running=[remember])  # type: ignore[attr-defined]
    try:
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
    environment.prepare()
    from flows.segment import segment_archive
    from pipelines.segment import Summary

    state, code = here(segment_archive, options_from(given))
    if code == DONE:
        summary = state.result()
        if given["as_json"]:
            print(json.dumps({"state": state.name, **summary}, indent=2))
        else:
            print_summary(Summary(**summary))
    if not given["as_json"] or code != DONE:
        tell(state, code)
    raise typer.Exit(code)
