"""Output: a progress bar with a rate and an ETA (plain lines without a terminal), and results as JSON."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from deeplab.json_text import json_text

stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False)
LINE_SECONDS = 5.0


def plain_table(*columns: str, left: tuple[str, ...] = ()) -> Table:
    """A table without borders. Columns of numbers are right-aligned: all but the first and those in `left`."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 or column in left else "right")
    return table


def print_json(value: object) -> None:
    """The result of a command as JSON on stdout."""
    print(json_text(value, indent=2))


class RateColumn(ProgressColumn):
    """Units per second, over the last half minute."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} {self.unit}/s" if speed else f"- {self.unit}/s", style="cyan")


class Bar:
    """One progress display; `note` is free text (errors, loss). Without a terminal it prints a line every LINE_SECONDS."""

    def __init__(self, progress: Progress, unit: str) -> None:
        self.progress, self.unit = progress, unit
        self.task = progress.add_task("", total=None, note="")
        self.printed = self.started = time.monotonic()
        self.phase = ""
        self.first = 0

    def update(self, phase: str, done: int, total: int | None, note: str = "") -> None:
        if phase != self.phase:
            self.phase, self.started, self.first = phase, time.monotonic(), done
            self.progress.reset(self.task, total=total)
            if not self.progress.console.is_terminal:
                self.progress.console.print(phase)
        self.progress.update(self.task, description=phase, completed=done, total=total, note=note)
        now = time.monotonic()
        if not self.progress.console.is_terminal and total and now - self.printed >= LINE_SECONDS:
            self.printed = now
            rate = (done - self.first) / max(now - self.started, 1e-9)
            eta = f", {(total - done) / rate:.0f} s left" if rate > 0 else ""
            self.progress.console.print(f"{phase} {done}/{total}, {rate:.1f} {self.unit}/s{eta} {note}".rstrip())


@contextmanager
def bar(unit: str) -> Iterator[Bar]:
    """A progress bar on stderr for the duration of the body.

    Ray prints news of its processes on stdout, which is for the result; here they go to stderr.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        RateColumn(unit),
        TextColumn("left"),
        TimeRemainingColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with redirect_stdout(sys.stderr), Progress(*columns, console=stderr, transient=True, disable=False) as progress:
        yield Bar(progress, unit)
