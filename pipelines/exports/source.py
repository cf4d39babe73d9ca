"""What is exported: the masks of one model, each with the name and the photo that belong to it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deeplab import masks
from deeplab.errors import ImageError, one_line
from deeplab.files import LocalFiles, mark_files, mark_output
from deeplab.names import relative_path, stem
from pipelines.archive import shards
from pipelines.archive.shards import parts_of, path_of
from pipelines.storage import filesystems
from pipelines.table.results_table import ResultsTable
from pipelines.table.table_errors import ResultsError

BATCH = 64  # rows that are read at a time; masks of the largest images have megabytes
NAMED = 1000  # skipped images that are named one by one; all are counted


@dataclass
class Exported:
    """What an export did: `files` written, `images` in them, and the images that were left out.

    `skipped`: URI -> reason, of the first NAMED of `left_out` images.
    """

    files: int = 0
    images: int = 0
    left_out: int = 0
    skipped: dict[str, str] = field(default_factory=dict)

    def skip(self, uri: str, reason: str) -> None:
        self.left_out += 1
        if len(self.skipped) < NAMED:
            self.skipped[uri] = reason


@dataclass(frozen=True)
class Mask:
    """A row of the table. `version`: of the bytes that were segmented. `name`: the image's path below the folder that all
    images share, with / between its parts.

    It is the image's own name, whatever is in it: `Masks.target` makes a place of it that is safe to write to, and
    `printed` is the text for documents.
    """

    uri: str
    version: str
    name: str
    height: int
    width: int
    confidence: float
    png: bytes

    @property
    def printed(self) -> str:
        """The name as text that UTF-8 can hold; bytes that are none as \\xe9."""
        return self.name.encode(errors="surrogateescape").decode(errors="backslashreplace")

    def labels(self) -> np.ndarray:
        """height x width uint8 or uint16 class ids."""
        return masks.decode_png(self.png)


def rows(table: ResultsTable, model: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The ok rows of a model, one by one; of an image with several versions only the one segmented last."""
    older = table.query(
        """
        SELECT uri, version FROM results WHERE status = 'ok'
        QUALIFY row_number() OVER (PARTITION BY uri ORDER BY segmented_at DESC, version) > 1
        """,
        model=model,
    ).fetchall()
    outdated = set(older)
    # Not through the data set: its scanner reads ahead of a writer that is slower than it, in the end the whole table.
    for path in table.files(model):
        try:
            with table.open_file(path) as file:
                for batch in file.iter_batches(BATCH, columns=list(dict.fromkeys([*columns, "uri", "version", "status"]))):
                    for row in batch.to_pylist():
                        if row["status"] == "ok" and (row["uri"], row["version"]) not in outdated:
                            yield row
        except (OSError, pa.ArrowException) as error:
            raise ResultsError(
                f"{table.uri}/{path}: cannot be read ({one_line(error)}); `deeplab verify` says what is wrong"
            ) from error


class Masks:
    """The newest mask of each image, in the table's order, and where its files go: `folder`, which is made here.

    `done` counts; writers call `wrote` for each image that is in their output. Memory holds a batch of rows.
    Raises ResultsError where the model has no mask.
    """

    def __init__(self, table: ResultsTable, model: str, folder: Path, report: Callable[[int], None] = lambda done: None) -> None:
        span = table.query("SELECT min(uri), max(uri) FROM results WHERE status = 'ok'", model=model).fetchone()
        if span is None or span[0] is None:
            raise ResultsError(f"{table.uri}: no ok rows of model {model} to export")
        # Every uri lies between the smallest and the largest, so what these two share all share.
        folders = zip(*(parts_of(uri)[:-1] for uri in span), strict=False)
        self.shared = [first for first, last in takewhile(lambda pair: pair[0] == pair[1], folders)]
        self.table, self.model, self.folder, self.report = table, model, folder, report
        self.classes = table.classes(model)
        self.done = Exported()
        self.taken: set[Path] = set()
        self.folders: set[Path] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self.own = mark_output(LocalFiles(folder))

    def __iter__(self) -> Iterator[Mask]:
        for row in rows(self.table, self.model, ["mask", "height", "width", "confidence", "read_version"]):
            name = path_of(parts_of(row["uri"])[len(self.shared) :], row["uri"].startswith("file:"))
            version = row.get("read_version") or row["version"]  # files of earlier releases have no such column
            yield Mask(row["uri"], version, name, row["height"], row["width"], row["confidence"], row["mask"])

    def target(self, mask: Mask, suffix: str, below: str = "") -> Path:
        """The file of a mask below `folder`, named as the image; its folder is made.

        Two images that differ only in their extension keep it (a.jpg.png). A name that is no path below the folder becomes one
        (`relative_path`). ResultsError where it is the image itself.
        """
        # Where a file has the name of another's folder, it lies beside all others under a name of its own.
        apart = f"{mask.name.replace('/', '_')}-{hashlib.sha256(mask.uri.encode()).hexdigest()[:12]}"
        for name in (stem(mask.name), mask.name, apart):
            target = self.folder / below / f"{relative_path(name, len(suffix))}{suffix}"
            above = [parent for parent in target.parents if parent.is_relative_to(self.folder)]
            if target not in self.taken and target not in self.folders and not self.taken.intersection(above):
                break
        self.taken.add(target)
        self.folders.update(above)
        if filesystems.canonical(str(target)) == mask.uri:
            raise ResultsError(f"{self.folder}: {target.name} is the image itself there; choose another folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def mark(self) -> None:
        """Mark what was written as ours, where the folder as a whole is not."""
        if not self.own:
            mark_files(self.taken)

    def refuse_earlier(self, pattern: str) -> None:
        """ResultsError where `folder` holds numbered files, which those of this export might not all replace."""
        if found := next(self.folder.glob(pattern), None):
            raise ResultsError(f"{self.folder}: holds an earlier export ({found.name}); choose another folder")

    def photo(self, mask: Mask, unchanged: bool = False) -> bytes | None:
        """The encoded photo behind a mask; None, and a reason in `done`, when it is gone.

        `unchanged`: also when it is not the very file that was segmented.
        """
        try:
            data, version = shards.fetch(mask.uri, mask.version)
        except OSError as error:
            self.done.skip(mask.uri, f"the photo cannot be read: {error}")
            return None
        if unchanged and version != mask.version:
            self.done.skip(mask.uri, "the photo changed since it was segmented; segment the archive again")
            return None
        return data

    def unusable(self, mask: Mask, error: ImageError) -> None:
        """Leave an image out whose photo is there, but is no longer what the mask belongs to."""
        self.done.skip(mask.uri, f"the photo cannot be used: {error}")

    def wrote(self, files: int = 0) -> None:
        """One more image is in the output, and `files` more files are."""
        self.done.images += 1
        self.done.files += files
        self.report(self.done.images)
