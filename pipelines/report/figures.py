"""The figures of the page, from the rows of a table and its log."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pipelines.archive.shards import name_of
from pipelines.table.counts import class_shares, reason_of
from pipelines.table.snapshot import Snapshot

BARS = 60  # of the throughput over time
BINS = 20  # of the confidence
REASONS, NAMES = 20, 10  # most frequent reasons of errors, and file names for each


@dataclass
class RunFigures:
    """One run that wrote rows of the model; its rate is over the time between its first and last row."""

    name: str
    first: datetime
    last: datetime
    images: int
    errors: int

    @property
    def seconds(self) -> float:
        return (self.last - self.first).total_seconds()

    @property
    def rate(self) -> float | None:
        return self.images / self.seconds if self.seconds >= 1 else None


@dataclass
class Facts:
    """The contents of the page. Shares are of pixels, 0..1; `throughput`: (start of a time slice, images/s) of the last run."""

    results: str
    model: str
    version: int
    created_at: datetime
    card: dict[str, Any]
    images: int = 0
    errors: int = 0
    confidence: float | None = None
    runs: list[RunFigures] = field(default_factory=list)
    throughput: list[tuple[datetime, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    before_name: str = ""
    histogram: list[int] = field(default_factory=list)
    reasons: list[tuple[str, int, list[str]]] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """For scripts."""
        runs = [
            {"run": r.name, "first": r.first.isoformat(), "last": r.last.isoformat(), "images": r.images, "errors": r.errors}
            for r in self.runs
        ]
        return {
            "results": self.results,
            "model": self.model,
            "version": self.version,
            "images": self.images,
            "errors": self.errors,
            "confidence": self.confidence,
            "runs": runs,
            "seconds_by_stage": self.seconds,
            "class_shares": self.shares,
            "confidence_histogram": self.histogram,
            "errors_by_reason": {reason: count for reason, count, _ in self.reasons},
        }


def gather(rows: Snapshot) -> Facts:
    """All figures: one pass over `rows` for each, none over the masks."""
    table, model = rows.table, rows.model
    facts = Facts(table.uri, model, table.version, datetime.now(UTC), table.models()[model])
    (facts.images, facts.errors, facts.confidence), *_ = rows.ask(
        "SELECT count(*), count(*) FILTER (status <> 'ok'), avg(confidence) FROM rows"
    )
    facts.runs = [
        RunFigures(*row)
        for row in rows.ask(
            "SELECT run, min(segmented_at), max(segmented_at), count(*), count(*) FILTER (status <> 'ok') "
            "FROM rows GROUP BY run ORDER BY max(segmented_at) DESC, run"
        )
    ]
    bins = dict(
        rows.ask(
            "SELECT least(?, floor(confidence * ?))::INT AS bin, count(*) FROM rows WHERE confidence IS NOT NULL GROUP BY 1",
            [BINS - 1, BINS],
        )
    )
    facts.histogram = [bins.get(index, 0) for index in range(BINS)]
    reason = reason_of("error")
    facts.reasons = [
        (text or "no reason given", count, [name_of(uri) for uri in uris])
        for text, count, uris in rows.ask(
            f"SELECT {reason}, count(*), (list(uri ORDER BY uri))[1:{NAMES}] FROM rows WHERE status <> 'ok' "
            f"GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {REASONS}"
        )
    ]
    if facts.runs:
        facts.throughput = _throughput(rows, facts.runs[0])
        facts.seconds = _seconds(rows, facts.runs[0].name)
    _compare(rows, facts)
    return facts


def _throughput(rows: Snapshot, run: RunFigures) -> list[tuple[datetime, float]]:
    slice_seconds = max(1.0, run.seconds / BARS)
    images = dict(
        rows.ask(
            "SELECT floor(epoch(segmented_at - ?::TIMESTAMPTZ) / ?)::INT, count(*) FROM rows WHERE run = ? GROUP BY 1",
            [run.first, slice_seconds, run.name],
        )
    )
    return [(run.first + timedelta(seconds=k * slice_seconds), images.get(k, 0) / slice_seconds) for k in range(max(images) + 1)]


def _seconds(rows: Snapshot, run: str) -> dict[str, float]:
    """Seconds by stage of a run, summed over its commits that are still in the log."""
    total: dict[str, float] = {}
    for commit in rows.table.delta.history():
        if commit.get("run") == run:
            for stage, seconds in json.loads(commit.get("seconds") or "{}").items():
                total[stage] = total.get(stage, 0.0) + seconds
    return total


def _compare(rows: Snapshot, facts: Facts) -> None:
    """Set the class shares of the last run, and those of the run before it or else of the model that wrote before this one."""
    table, model = rows.table, rows.model
    with_masks = [
        run for (run,) in rows.ask("SELECT run FROM rows WHERE status = 'ok' GROUP BY run ORDER BY max(segmented_at) DESC, run")
    ]
    if not with_masks:
        return
    facts.shares = class_shares(table, model, with_masks[0])
    if len(with_masks) > 1:
        facts.before, facts.before_name = class_shares(table, model, with_masks[1]), with_masks[1]
        return
    earlier_model = table.query(
        "SELECT model FROM results WHERE model <> ? AND status = 'ok' GROUP BY model ORDER BY max(segmented_at) DESC LIMIT 1",
        [model],
    ).fetchone()
    if earlier_model:
        facts.before, facts.before_name = class_shares(table, earlier_model[0]), earlier_model[0]
