"""The contents of a results table, and how much of an archive is still to do."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NotRequired, TypedDict

from pipelines.archive import inventory
from pipelines.segment import plan
from pipelines.table import counts
from pipelines.table.results_table import ResultsTable


class ModelStatus(TypedDict):
    """Rows of one model; `first`, `last`: ISO times of its first and last row."""

    model: str
    ok: int
    errors: int
    errors_by_reason: dict[str, int]
    mean_confidence: float | None
    first: str
    last: str


class ArchiveStatus(TypedDict):
    """Images of an archive: all, those with a row of `model`, and those without."""

    archive: str
    model: str
    images: int
    done: int
    pending: int


class TableStatus(TypedDict):
    """A results table, JSON-ready."""

    results: str
    version: int
    models: list[ModelStatus]
    archive: NotRequired[ArchiveStatus]


def status(
    table: ResultsTable,
    archive: str | None = None,
    model: str | None = None,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
) -> TableStatus:
    """Version, models, rows, errors by reason; with `archive` also how many of its images have no row yet.

    include, exclude: the patterns with which the archive was segmented, which a table does not store.
    """
    models: list[ModelStatus] = []
    for label, ok, errors, first, last, confidence in table.query(
        """
        SELECT model, count(*) FILTER (status = 'ok'), count(*) FILTER (status <> 'ok'), min(segmented_at), max(segmented_at),
               avg(confidence)
        FROM results GROUP BY model ORDER BY max(segmented_at) DESC
        """
    ).fetchall():
        reasons = table.query(
            f"""
            SELECT {counts.reason_of("error")}, count(*) FROM results WHERE status <> 'ok'
            GROUP BY 1 ORDER BY 2 DESC, 1
            """,
            model=label,
        ).fetchall()
        models.append(
            ModelStatus(
                model=label,
                ok=ok,
                errors=errors,
                errors_by_reason=dict(reasons),
                mean_confidence=confidence,
                first=first.isoformat(),
                last=last.isoformat(),
            )
        )
    result = TableStatus(results=table.uri, version=table.version, models=models)
    if archive is not None:
        with tempfile.TemporaryDirectory(prefix="deeplab-") as folder:
            listed = inventory.take(archive, Path(folder) / "inventory.parquet", include=include, exclude=exclude)
            label = table.pick_model(model)
            todo = plan.make(listed.path, table, label, Path(folder) / "plan.parquet")
        result["archive"] = ArchiveStatus(archive=archive, model=label, images=todo.archive, done=todo.done, pending=todo.images)
    return result
