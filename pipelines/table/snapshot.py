"""A snapshot of one model's rows at one version of the table, without their masks, in a local DuckDB file.

Masks are nearly all of a table's bytes. The other columns, which the page counts and lists, are read once; a mask is read from
its file when it is asked for.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads

from pipelines import sql
from pipelines.table.results_table import ResultsTable

COLUMNS = ("uri", "version", "status", "error", "height", "width", "confidence", "run", "segmented_at", "class_pixels")


class Snapshot:
    """A snapshot in DuckDB: the rows are the table `rows`, numbered by `id`. Use it as a context."""

    def __init__(self, table: ResultsTable, model: str) -> None:
        """`table`: as it was opened; later commits are not seen."""
        self.table, self.model, self.classes = table, model, table.classes(model)
        dataset = table.dataset(model)
        self.fragments = {fragment.path: fragment for fragment in dataset.get_fragments()}
        self.folder = tempfile.TemporaryDirectory(prefix="deeplab-report-")
        self.connection = sql.connect(Path(self.folder.name), file="rows.duckdb", memory="1GB")
        scanned = dataset.scanner(columns=[*COLUMNS, "__filename"], batch_size=65536).to_reader()
        self.connection.register("scanned", scanned)
        with table.reading():
            self.connection.execute(
                "CREATE TABLE rows AS SELECT row_number() OVER () AS id, * RENAME (__filename AS file), "
                "map_keys(class_pixels) AS names FROM scanned"
            )
        self.connection.unregister("scanned")

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self.folder.cleanup()

    def ask(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows that a query returns; safe from several threads."""
        cursor = self.connection.cursor()
        try:
            rows: list[tuple[Any, ...]] = cursor.execute(sql, list(parameters)).fetchall()
            return rows
        finally:
            cursor.close()

    def masks(self, numbers: Sequence[int]) -> dict[int, tuple[str, str, bytes]]:
        """(uri, version, PNG of the mask) of the ok rows with these ids."""
        if not numbers:
            return {}
        marks = ", ".join("?" * len(numbers))
        wanted: dict[str, dict[tuple[str, str], int]] = defaultdict(dict)
        for number, file, uri, version in self.ask(
            f"SELECT id, file, uri, version FROM rows WHERE status = 'ok' AND id IN ({marks})", numbers
        ):
            wanted[file][uri, version] = number
        masks = {}
        for file, images in wanted.items():
            chosen = pads.field("uri").isin([uri for uri, _ in images])
            for row in self.fragments[file].to_table(columns=["uri", "version", "mask"], filter=chosen).to_pylist():
                number = images.get((row["uri"], row["version"]))
                if number is not None and row["mask"] is not None:
                    masks[number] = (row["uri"], row["version"], row["mask"])
        return masks
