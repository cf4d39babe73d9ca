"""A small real table without Ray, for the tests of exports: rows put with the table's own writer."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from deeplab import masks
from deeplab.classes import ClassTable
from pipelines.exports.export import export
from pipelines.exports.source import Exported
from pipelines.storage import filesystems
from pipelines.table.commit import write_part
from pipelines.table.results_table import ResultsTable
from pipelines.table.schema import FILE_SCHEMA

LAND = ClassTable(("background", "water & marsh", "forest"), ((0, 0, 0), (0, 0, 255), (0, 128, 0)))


def regions(height: int, width: int, classes: int, seed: int = 0) -> np.ndarray:
    """A label map of blobs with holes, single pixels and pixels that touch at corners only."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, classes, (-(-height // 7), -(-width // 7)))
    labels = np.kron(coarse, np.ones((7, 7), int))[:height, :width]
    spots = random.random((height, width)) < 0.03
    labels[spots] = random.integers(0, classes, int(spots.sum()))
    return labels.astype(np.uint16 if classes > 256 else np.uint8)


def make_table(folder: Path, of: Mapping[Path, np.ndarray], classes: ClassTable = LAND, stale: bool = True) -> ResultsTable:
    """A table with the masks of these images. `stale`: also an older version of the first image, all of class 0."""
    return table_of(folder, {path.as_uri(): labels for path, labels in of.items()}, classes, stale)


def table_of(folder: Path, of: Mapping[str, np.ndarray], classes: ClassTable = LAND, stale: bool = False) -> ResultsTable:
    """The same for images by their URIs."""
    table = ResultsTable.ensure(str(folder))
    card = {"name": "m", "classes": [{"name": n, "colour": list(c)} for n, c in zip(classes.names, classes.colours, strict=True)]}
    table.register("m@000000000000", card)
    now = datetime(2026, 1, 2, tzinfo=UTC)
    rows = []
    for uri, labels in of.items():
        stat = None if filesystems.is_s3(uri) else filesystems.stat_all([uri])[0]
        versions = [(stat.version if stat else "gone", labels, now)]
        if stale and not rows:
            versions.append(("1-1", labels * 0, now - timedelta(days=1)))
        for version, mask, when in versions:
            rows.append(
                {
                    "uri": uri,
                    "version": version,
                    "status": "ok",
                    "height": mask.shape[0],
                    "width": mask.shape[1],
                    "mask": masks.encode_png(mask, classes),
                    "class_pixels": list(masks.class_pixels(mask, classes).items()),
                    "confidence": 0.75,
                    "run": "run-1",
                    "segmented_at": when,
                }
            )
    broken = {"uri": "file:///nowhere/broken.jpg", "version": "1", "status": "error", "error": "decode"}
    rows.append({**broken, "run": "run-1", "segmented_at": now})
    part = write_part(table.uri, "m@000000000000", pa.Table.from_pylist(rows, schema=FILE_SCHEMA))
    table.commit("chunk", 1, [part.add_action("m@000000000000")], model="m@000000000000")
    return ResultsTable.open(str(folder))


def written(table: ResultsTable, folder: Path, form: str) -> Exported:
    return export(table, table.pick_model(None), folder, form)
