"""Live counts of a chunk, kept by one small actor; for display only, the truth is in the table's commits."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray


@ray.remote(num_cpus=0)
class Counter:
    """Sums what the stages report. A block that is done again after a death reports under the same key."""

    def __init__(self) -> None:
        self.reports: dict[tuple[str, str], tuple[int, int, dict[str, float]]] = {}

    def add(self, stage: str, key: str, images: int, errors: int, seconds: dict[str, float]) -> None:
        self.reports[stage, key] = (images, errors, seconds)

    def totals(self) -> tuple[int, int, dict[str, float]]:
        """Images and errors so far, and seconds by stage summed over processes."""
        seconds: dict[str, float] = {}
        for _, _, spent in self.reports.values():
            for stage, value in spent.items():
                seconds[stage] = seconds.get(stage, 0.0) + value
        images = sum(report[0] for report in self.reports.values())
        return images, sum(report[1] for report in self.reports.values()), seconds


class Reporter:
    """Callable from any stage on any node; never waits and never fails the work it reports on."""

    def __init__(self, counter: Any) -> None:
        self.counter = counter

    def __call__(self, stage: str, key: str, images: int, errors: int, seconds: dict[str, float]) -> None:
        with suppress(Exception):
            self.counter.add.remote(stage, key, images, errors, seconds)
