"""How long a training will take, in words, and its course in one line."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deeplab.training.loop import TrainingProgress

TIMED_STEPS = 5  # after the first, which also starts the loaders and plans the convolutions
STARVED = 0.05  # share of the time waiting for data from which on more loaders help
BARS = "▁▂▃▄▅▆▇█"


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 20 s, 5 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class TrainingPace:
    """Seconds a step and a validation take, from the times in the reports of a training."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.validations: list[float] = []
        self.waits: list[float] = []  # of as many steps, for data
        self.last: TrainingProgress | None = None
        self.announced = False

    def add(self, progress: TrainingProgress) -> str:
        """Take in the report of a step; some may be left out, but none with a validation.

        Returns, once, a line on how long the training takes; else an empty text.
        `progress.at` is before a step's own validation, whose time is therefore in the gap to the next step.
        """
        before, self.last = self.last, progress
        if before is None:
            return ""
        gap, steps = progress.at - before.at, progress.step - before.step
        if before.validation is None:
            self.steps = [*self.steps[-99:], gap / steps]
            self.waits = [*self.waits[-99:], progress.waited]
        elif self.steps:
            self.validations.append(max(0.0, gap - steps * statistics.median(self.steps)))
        if self.announced or (len(self.steps) < TIMED_STEPS and progress.step < progress.steps):
            return ""
        self.announced = True
        left = self.left()
        if left is None:
            return ""
        besides = "" if self.validations or not progress.validations_left else f", besides {progress.validations_left} validations"
        return (
            f"{statistics.median(self.steps):.2f} s a step: about {duration(left)} for the remaining "
            f"{progress.steps - progress.step:,} steps{besides}"
        )

    def waiting(self) -> str:
        """The share of the last hundred steps' time that was spent waiting for data, in words; empty before the second step."""
        if not self.steps:
            return ""
        share = min(1.0, sum(self.waits) / max(sum(self.steps), 1e-9))
        return f"{share:.0%} of the time waiting for data" + (": more --loaders help" if share >= STARVED else "")

    def left(self) -> float | None:
        """Seconds until the end, validations included once one was timed; None before the second step."""
        if self.last is None or not self.steps:
            return None
        validation = statistics.median(self.validations) if self.validations else 0.0
        steps = self.last.steps - self.last.step
        return steps * statistics.median(self.steps) + self.last.validations_left * validation


def course(loss: Sequence[float], mean_iou: Sequence[float]) -> str:
    """Loss and mIoU of the validations as two small bar charts in one line."""
    return f"loss {loss[0]:.3f} {_bars(loss)} {loss[-1]:.3f}, mIoU {mean_iou[0]:.3f} {_bars(mean_iou)} {mean_iou[-1]:.3f}"


def _bars(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] if high > low else BARS[0] for value in values)
