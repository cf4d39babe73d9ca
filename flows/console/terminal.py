"""Output: a progress bar with a rate and an ETA (plain lines without a terminal), and results as JSON."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout

from rich.console import Console, RenderableType
from rich.padding import Padding
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
SHARE_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")


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


class LiveView(Progress):
    """A progress bar with lines below it: `details`, name -> text."""

    details: Mapping[str, Text] = {}

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.details:
            lines = Table.grid(padding=(0, 2, 0, 0))
            for name, text in self.details.items():
                lines.add_row(Text(name, style="dim"), text)
            yield Padding(lines, (0, 0, 0, 2))


def shares(parts: Mapping[str, float], width: int = 28) -> Text:
    """Parts of a whole, the largest first: a bar in colours and its legend; without colours the legend says the same."""
    whole = sum(parts.values())
    text, legend = Text(), Text()
    if whole <= 0:
        return text
    largest = sorted(parts.items(), key=lambda part: -part[1])
    drawn, reached = 0, 0.0
    for index, (name, part) in enumerate(largest):
        colour = SHARE_COLOURS[index % len(SHARE_COLOURS)]
        reached += part
        text.append("━" * (round(width * reached / whole) - drawn), style=colour)
        drawn = round(width * reached / whole)
        if part / whole >= 0.005:
            legend.append(f"  {name} {part / whole:.0%}", style=colour)
    return text + legend


class Bar:
    """One progress display; `note` is free text (errors, loss), `details` are lines below the bar.

    Without a terminal it prints a line every LINE_SECONDS, with the note and the details.
    """

    def __init__(self, progress: LiveView, unit: str) -> None:
        self.progress, self.unit = progress, unit
        self.task = progress.add_task("", total=None, note="")
        self.printed = self.started = time.monotonic()
        self.phase = ""
        self.first = 0

    def update(self, phase: str, done: int, total: int | None, note: str = "", details: Mapping[str, Text] | None = None) -> None:
        if phase != self.phase:
            self.phase, self.started, self.first = phase, time.monotonic(), done
            self.progress.reset(self.task, total=total)
            if not self.progress.console.is_terminal:
                self.progress.console.print(phase)
        self.progress.details = details or {}
        self.progress.update(self.task, description=phase, completed=done, total=total, note=note)
        now = time.monotonic()
        if not self.progress.console.is_terminal and total and now - self.printed >= LINE_SECONDS:
            self.printed = now
            rate = (done - self.first) / max(now - self.started, 1e-9)
            eta = f", {(total - done) / rate:.0f} s left" if rate > 0 else ""
            lines = [f"{name} {text.plain.strip('━ ')}" for name, text in self.progress.details.items()]
            line = ", ".join([f"{phase} {done}/{total}", f"{rate:.1f} {self.unit}/s{eta}", *([note] if note else []), *lines])
            self.progress.console.print(line, soft_wrap=True)


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
    with redirect_stdout(sys.stderr), LiveView(*columns, console=stderr, transient=True, disable=False) as progress:
        yield Bar(progress, unit)
