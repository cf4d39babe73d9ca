"""The source of an export: the masks of one model, each with its name and its photo."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from deeplab import masks
from deeplab.errors import ImageError
from deeplab.files import LocalFiles, mark_files, mark_output
from deeplab.safe_names import relative_path, stem
from pipelines.archive import shards
from pipelines.archive.shards import parts_of, path_of
from pipelines.storage import filesystems
from pipelines.table import newest_masks
from pipelines.table.results_table import ResultsTable
from pipelines.table.table_errors import ResultsError

CLASSES = "classes.txt"
NAMED = 1000  # skipped images that are named; all are counted


@dataclass
class Exported:
    """The result of an export: `files` written, `images` in them, and images `left_out`. `skipped`: URI -> reason of the first
    NAMED of these."""

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

    The name may hold anything: `Masks.target` turns it into a safe path, and `printed` into text for documents.
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
        """The name as valid UTF-8; bytes that are not become \\xe9."""
        return self.name.encode(errors="surrogateescape").decode(errors="backslashreplace")

    def labels(self) -> np.ndarray:
        """height x width uint8 or uint16 class ids."""
        return masks.decode_png(self.png)


class MaskRow(TypedDict):
    """The columns of an ok row that are exported."""

    uri: str
    version: str
    status: str
    mask: bytes
    height: int
    width: int
    confidence: float
    read_version: NotRequired[str | None]  # files of earlier releases lack it


def rows(table: ResultsTable, model: str) -> Iterator[MaskRow]:
    """The ok rows of a model, one by one; for an image with several versions, only the one segmented last."""
    older = newest_masks.outdated(table, model)
    for path in table.files(model):
        for batch in newest_masks.batches(table.uri, path, older, list(MaskRow.__annotations__)):
            yield from batch.to_pylist()


class Masks:
    """The newest mask of each image, in the table's order, and the `folder` for its files, which is created.

    `done`: the result so far; writers call `wrote` for each image in their output. Memory holds a batch of rows.
    Raises ResultsError if the model has no mask.
    """

    def __init__(self, table: ResultsTable, model: str, folder: Path, report: Callable[[int], None] = lambda done: None) -> None:
        span = table.query("SELECT min(uri), max(uri) FROM results WHERE status = 'ok'", model=model).fetchone()
        if span is None or span[0] is None:
            raise ResultsError(f"{table.uri}: no ok rows of model {model} to export")
        # All uris sort between the smallest and the largest, so the folders that these two share are shared by all.
        folders = zip(*(parts_of(uri)[:-1] for uri in span), strict=False)
        self.shared = [first for first, last in takewhile(lambda pair: pair[0] == pair[1], folders)]
        self.table, self.model, self.folder, self.report = table, model, folder, report
        self.classes = table.classes(model)
        self.done = Exported()
        self.targets: set[Path] = set()
        self.folders: set[Path] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self.own = mark_output(LocalFiles(folder))

    def __iter__(self) -> Iterator[Mask]:
        for row in rows(self.table, self.model):
            name = path_of(parts_of(row["uri"])[len(self.shared) :], row["uri"].startswith("file:"))
            version = row.get("read_version") or row["version"]
            yield Mask(row["uri"], version, name, row["height"], row["width"], row["confidence"], row["mask"])

    def target(self, mask: Mask, suffix: str, below: str = "") -> Path:
        """The file of a mask below `folder`, named like the image; creates its folder.

        Images that differ only in their extension keep it (a.jpg.png). A name that leads outside the folder is changed
        (`relative_path`). ResultsError if the file is the image itself.
        """
        # A file with the name of another's folder gets a unique name at the top.
        unique = f"{mask.name.replace('/', '_')}-{hashlib.sha256(mask.uri.encode()).hexdigest()[:12]}"
        for name in (stem(mask.name), mask.name, unique):
            target = self.folder / below / f"{relative_path(name, len(suffix))}{suffix}"
            above = [parent for parent in target.parents if parent.is_relative_to(self.folder)]
            if target not in self.targets and target not in self.folders and not self.targets.intersection(above):
                break
        self.targets.add(target)
        self.folders.update(above)
        if filesystems.canonical(str(target)) == mask.uri:
            raise ResultsError(f"{self.folder}: {target.name} would overwrite the image itself; choose another folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def mark(self) -> None:
        """Mark the files as ours, unless the whole folder is marked."""
        if not self.own:
            mark_files(self.targets)

    def write_classes(self) -> None:
        """Write classes.txt, the name of a class a line in the order of ids, as data sets have it. It does not count as a file.

        ResultsError if `folder` has one with other names: masks of two models would lie side by side.
        """
        path = self.folder / CLASSES
        text = "".join(f"{' '.join(name.split())}\n" for name in self.classes.names)
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
            raise ResultsError(f"{self.folder}: its {CLASSES} names other classes than {self.model}; choose another folder")
        self.targets.add(path)  # an image's folder of that name gets another
        LocalFiles(self.folder).write(CLASSES, text.encode())

    def refuse_earlier(self, pattern: str) -> None:
        """ResultsError if `folder` holds numbered files of an earlier export, which this one might not all replace."""
        if earlier := next(self.folder.glob(pattern), None):
            raise ResultsError(f"{self.folder}: holds an earlier export ({earlier.name}); choose another folder")

    def photo(self, mask: Mask, unchanged: bool = False) -> bytes | None:
        """The encoded photo of a mask; None if it is gone, with the reason in `done`. `unchanged`: also None if it has changed."""
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
        """Leave out an image whose photo exists, but no longer fits the mask."""
        self.done.skip(mask.uri, f"the photo cannot be used: {error}")

    def wrote(self, files: int = 0) -> None:
        """Count one more image in the output, and `files` more files."""
        self.done.images += 1
        self.done.files += files
        self.report(self.done.images)
