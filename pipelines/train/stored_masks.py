"""The rows of a results table that are the masks of a labelled split, and reading their masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deeplab import masks
from deeplab.data.datasets import LabelledFolder
from deeplab.data.layouts import DatasetError
from deeplab.safe_names import stem
from pipelines import sql
from pipelines.storage import filesystems
from pipelines.table.results_table import ResultsTable
from pipelines.table.table_errors import ResultsError
from pipelines.train.packed_datasets import Packed

# The newest row of each wanted image. `uris`: whether several images match its name.
NEWEST = """
    SELECT position, uri, version, status, refined, scored, uris FROM (
        SELECT w.position, r.uri, r.version, r.status, r.refined, r.scored,
               min(r.uri) OVER same <> max(r.uri) OVER same AS uris,
               row_number() OVER (PARTITION BY w.position ORDER BY r.segmented_at DESC) AS age
        FROM results r JOIN wanted w ON {condition}
        WINDOW same AS (PARTITION BY w.position))
    WHERE age = 1 ORDER BY position
"""
BY_NAME = "regexp_extract(r.uri, '([^/]+?)(\\.[^./]*)?$', 1) IN (w.name, w.quoted)"


def is_table(place: str) -> bool:
    """Whether a place holds a Delta table and so is not a model."""
    if "@" in place and "://" not in place:
        return False
    if not filesystems.is_s3(place):
        return (filesystems.local_path(place) / "_delta_log").is_dir()
    try:
        return bool(filesystems.files(f"{filesystems.canonical(place)}/_delta_log").names())
    except OSError:
        return False  # reading it as a model will report the error


def require_classes(data: LabelledFolder | Packed, names: Sequence[str], label: str) -> None:
    """DatasetError unless the data set's classes are `names`, those of the model `label`."""
    if data.classes != list(names):
        place = data.place if isinstance(data, Packed) else data.files
        raise DatasetError(f"{place}: classes {', '.join(data.classes)}; {label} knows {', '.join(names)}")


@dataclass(frozen=True)
class StoredMasks:
    """The masks of a split in a results table. `rows[i]`: uri and version of image i of the split; None if its row is an error."""

    table: str
    label: str
    classes: list[str]
    rows: list[tuple[str, str] | None]
    refined: str | None
    scored: str | None

    @property
    def missing(self) -> int:
        return sum(row is None for row in self.rows)

    @classmethod
    def of(cls, place: str, model: str | None, data: LabelledFolder | Packed) -> StoredMasks:
        """The newest rows of `model` (None: the latest to write) for every image of `data`.

        Images are matched by URI or, if no URI of the split is in the table (a pack, or a copy elsewhere), by file name without
        extension. ResultsError for images without a row, and for a name that several images have; DatasetError for other classes.
        """
        table = ResultsTable.open(place)
        label = table.pick_model(model)
        classes = list(table.classes(label).names)
        require_classes(data, classes, label)
        places = data.images if isinstance(data, LabelledFolder) else []
        uris = [filesystems.canonical(f"{data.files}/{name}") for name in places] if isinstance(data, LabelledFolder) else []
        names = [name.rsplit("/", 1)[-1] for name in (map(stem, places) if places else data.stems)]
        connection = sql.connect()
        connection.register("results", table.dataset(label))
        encoded = [os.fsencode(name) for name in names]
        wanted = {
            "position": range(len(data)),
            "uri": uris or [""] * len(data),
            "name": [name.decode(errors="replace") for name in encoded],
            "quoted": map(quote, encoded),
        }
        connection.register("wanted", pa.table({key: list(values) for key, values in wanted.items()}))
        with table.reading():
            newest = connection.execute(NEWEST.format(condition="r.uri = w.uri")).fetchall() if uris else []
            if not newest:
                newest = connection.execute(NEWEST.format(condition=BY_NAME)).fetchall()
        ambiguous = [data.stems[row[0]] for row in newest if row[6]]
        if ambiguous:
            raise ResultsError(f"{place}: several images are called {ambiguous[0]}; segment the images of the data set itself")
        matched = {row[0] for row in newest}
        absent = [stem for position, stem in enumerate(data.stems) if position not in matched]
        if absent:
            raise ResultsError(
                f"{place}: {len(absent)} of {len(data)} images of {data.split} have no row of {label}: {', '.join(absent[:3])}"
                f"{', ...' if len(absent) > 3 else ''}; segment them first"
            )
        rows = [(uri, version) if status == "ok" else None for _, uri, version, status, _, _, _ in newest]

        def made_with(column: int) -> str | None:
            texts = " and ".join(sorted({str(row[column]) for row in newest if row[3] == "ok"}))
            return None if texts in ("None", "") else texts

        return cls(place, label, classes, rows, refined=made_with(4), scored=made_with(5))

    def read(self, indices: Sequence[int]) -> dict[int, np.ndarray]:
        """The masks of the images of these indices, by index, without those whose row is an error."""
        wanted = {row: index for index in indices if (row := self.rows[index]) is not None}
        dataset = ResultsTable.open(self.table).dataset(self.label)
        rows = dataset.to_table(
            ["uri", "version", "mask"], filter=pc.field("uri").isin(pa.array([uri for uri, _ in wanted], pa.string()))
        ).to_pylist()
        masks_of = {(row["uri"], row["version"]): row["mask"] for row in rows}
        return {index: masks.decode_png(masks_of[row]) for row, index in wanted.items()}
