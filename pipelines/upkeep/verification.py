"""Verify a results table: every file exists, every row is sound, every image has one row."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import pyarrow as pa

from deeplab import masks
from deeplab.classes import ClassTable
from deeplab.errors import one_line
from pipelines import sql
from pipelines.table.results_table import ResultsTable
from pipelines.table.schema import ADDED, FILE_SCHEMA
from pipelines.upkeep.repair import missing
from pipelines.upkeep.status import status

TARGET_BYTES = 128 << 20
RETENTION_HOURS = 168
NAMED = 100  # problems that are named one by one; all are counted


@dataclass
class Verdict:
    """The result of `verify`. `problems`: sentences, the first NAMED of `count`; `pending`: images of the archive without a row."""

    files: int = 0
    rows: int = 0
    count: int = 0
    problems: list[str] = field(default_factory=list)
    pending: int | None = None

    def add(self, problem: str) -> None:
        self.count += 1
        if len(self.problems) < NAMED:
            self.problems.append(problem)


def verify(
    table: ResultsTable,
    archive: str | None = None,
    model: str | None = None,
    report: Callable[[int, int], None] = lambda *_: None,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
) -> Verdict:
    """Read every file and decode every mask: files exist and are readable, masks have the image's size, the model's classes and the
    row's counts, and no image has two rows. With `archive`, also count its images without a row of `model`, as `status` does.

    `report` gets the files read and their total. Memory holds one batch of rows; keys are compared on disk.
    """
    verdict = Verdict()
    labels = [model] if model is not None else list(table.models())
    absent = {entry.path: entry for entry in missing(table) if entry.model in labels}
    for entry in absent.values():
        verdict.add(str(entry))
    files = [(label, path) for label in labels for path in sorted(table.files(label)) if path not in absent]
    folder = Path(tempfile.mkdtemp(prefix="deeplab-verify-"))
    try:
        with sql.connect(folder, file="keys.duckdb") as keys:
            keys.execute("CREATE TABLE keys (uri VARCHAR, version VARCHAR, model VARCHAR)")
            for number, (label, path) in enumerate(files):
                report(number, len(files))
                classes = table.classes(label)
                try:
                    with table.open_file(path) as source:
                        for batch in source.iter_batches(batch_size=500):
                            _check_rows(pa.Table.from_batches([batch]), classes, path, verdict)
                            named = pa.table({"uri": batch["uri"], "version": batch["version"]})
                            keys.register("named", named)
                            keys.execute("INSERT INTO keys SELECT uri, version, ? FROM named", [label])
                except (OSError, pa.ArrowException, KeyError) as error:
                    verdict.add(f"{path}: not readable ({one_line(error)})")
                verdict.files += 1
            doubled = keys.execute("SELECT uri, version, model, count(*) FROM keys GROUP BY ALL HAVING count(*) > 1").fetchall()
        for uri, version, label, count in doubled:
            verdict.add(f"{uri} (version {version}, model {label}): {count} rows")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if archive is not None:
        verdict.pending = status(table, archive, model, include, exclude)["archive"]["pending"]
    return verdict


class CheckedRow(TypedDict):
    """The columns of a row that are checked, which may hold anything."""

    uri: str
    status: str
    error: str | None
    height: int | None
    width: int | None
    mask: bytes | None
    class_pixels: list[tuple[str, int]] | None


def _check_rows(rows: pa.Table, classes: ClassTable, path: str, verdict: Verdict) -> None:
    absent = [field.name for field in FILE_SCHEMA if field not in ADDED and field.name not in rows.column_names]
    if absent:
        raise KeyError(f"no column {', '.join(absent)}")
    for row in rows.select(list(CheckedRow.__annotations__)).to_pylist():
        verdict.rows += 1
        if (problem := _problem(row, classes)) is not None:
            verdict.add(f"{row['uri']} in {path}: {problem}")


def _problem(row: CheckedRow, classes: ClassTable) -> str | None:
    if row["status"] == "error":
        return None if row["error"] and row["mask"] is None else "an error row without a reason, or with a mask"
    if row["status"] != "ok" or row["mask"] is None:
        return f"status {row['status']!r} and no mask" if row["mask"] is None else f"status {row['status']!r}"
    try:
        labels = masks.decode_png(row["mask"])
    except (OSError, ValueError, SyntaxError) as error:
        return f"the mask does not decode ({error})"
    if labels.shape != (row["height"], row["width"]):
        return f"the mask is {labels.shape}, the image {(row['height'], row['width'])}"
    if int(labels.max(initial=0)) >= len(classes):
        return f"the mask has class {labels.max()}, the model {len(classes)} classes"
    if masks.class_pixels(labels, classes) != dict(row["class_pixels"] or ()):
        return "class_pixels do not agree with the mask"
    return None
