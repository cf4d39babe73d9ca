"""A data set packed into a few Parquet files: one row per pair, read in any order with one request each, also from a store."""

from __future__ import annotations

import copy
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from deeplab.classes import IGNORE, ClassTable
from deeplab.data.datasets import LabelledFolder
from deeplab.data.layouts import DatasetError
from deeplab.errors import ImageError
from deeplab.files import Files, mark_output
from deeplab.images.decoding import decode_labels, decode_picture
from deeplab.masks import encode_png
from pipelines.storage import filesystems

INDEX = "pack.json"
FORMAT = "deeplab-pack/1"
FILE_BYTES = 256 << 20  # of images and labels per file: few objects, and little work to repeat after a failure
SCHEMA = pa.schema([("stem", pa.string()), ("image", pa.binary()), ("labels", pa.binary())])


class PackedPair(TypedDict):
    """A row of SCHEMA."""

    stem: str
    image: bytes
    labels: bytes


class PackedFile(TypedDict):
    """A Parquet file in the index: its name and the stems of its rows."""

    name: str
    stems: list[str]


class PackIndex(TypedDict):
    """The index of a pack."""

    format: str
    classes: list[str]
    splits: dict[str, list[PackedFile]]


def pack(
    splits: Sequence[LabelledFolder], out: str, tile: int = 0, report: Callable[[int, int], None] = lambda done, total: None
) -> int:
    """Write the splits to `out` (a folder or s3:// prefix) and return how many pairs the pack holds.

    Images keep their bytes; labels become PNG of our class ids, whatever the layout. With `tile`, a pair with a longer side is
    cut into the fewest tiles of at most `tile` x `tile` that cover it without overlap, of equal sizes, as PNG, so that a training
    crop does not decode the whole of a large image. The index is written last, so an unfinished pack is not one. DatasetError for
    a broken pair, with its name, or if `out` already holds a pack.
    """
    target = filesystems.files(filesystems.canonical(out))
    if target.has(INDEX):
        raise DatasetError(f"{out} already holds a pack; choose another place")
    table = ClassTable.from_names(splits[0].classes)
    total, done, pairs = sum(map(len, splits)), 0, 0
    index = PackIndex(format=FORMAT, classes=splits[0].classes, splits={})
    for data in splits:
        mark_output(target, data.split)
        files: list[PackedFile] = []
        rows: list[PackedPair] = []
        size = 0
        for position, stem in enumerate(data.stems):
            encoded, labels = data.encoded(position)
            image, ids = data.decode(position, encoded, labels)
            for part_stem, window in _tiles(stem, ids.shape, tile):
                part = encoded if window is None else _png(image[window])
                rows.append({"stem": part_stem, "image": part, "labels": encode_png(ids if window is None else ids[window], table)})
                size += len(part) + len(rows[-1]["labels"])
                pairs += 1
            done += 1
            if size >= FILE_BYTES or position == len(data) - 1:
                name = f"{data.split}/part-{len(files):05d}.parquet"
                target.write(name, _parquet(rows))
                files.append({"name": name, "stems": [row["stem"] for row in rows]})
                rows, size = [], 0
            report(done, total)
        index["splits"][data.split] = files
    target.write(INDEX, json.dumps(index).encode())
    return pairs


def _tiles(stem: str, size: tuple[int, ...], tile: int) -> list[tuple[str, tuple[slice, slice] | None]]:
    """Names and windows of the tiles of a pair; the pair itself, with window None, if it is not cut."""
    if not tile or max(size) <= tile:
        return [(stem, None)]
    rows, columns = ([side * k // -(-side // tile) for k in range(-(-side // tile) + 1)] for side in size)
    return [
        (f"{stem}-{top}-{left}", (slice(top, bottom), slice(left, right)))
        for top, bottom in itertools.pairwise(rows)
        for left, right in itertools.pairwise(columns)
    ]


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _parquet(rows: list[PackedPair]) -> bytes:
    """One row group per pair, as pairs are read alone; without compression, as they are encoded already."""
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, SCHEMA)
    pq.write_table(table, sink, row_group_size=1, compression="none", use_dictionary=False, write_statistics=False)
    return bytes(sink.getvalue().to_pybytes())


class Packed:
    """One split of a pack; `dataset[i]` as in LabelledFolder. Files are opened on first use, once per process."""

    def __init__(self, place: str, split: str) -> None:
        self.place, self.split = filesystems.canonical(place), split
        files: Files = filesystems.files(self.place)
        self.remote = files.remote
        try:
            index = json.loads(files.read(INDEX))
        except (OSError, ValueError) as error:
            raise DatasetError(f"{place}/{INDEX}: cannot be read ({error})") from error
        if index.get("format") != FORMAT:
            raise DatasetError(f"{place}/{INDEX}: format {index.get('format')!r}; this version reads {FORMAT!r}")
        if split not in index["splits"]:
            raise DatasetError(f"{place}: no split {split}; splits here: {', '.join(index['splits'])}")
        parts: list[PackedFile] = index["splits"][split]
        self.classes: list[str] = index["classes"]
        self.rows = [(part["name"], row) for part in parts for row in range(len(part["stems"]))]
        self.stems = [stem for part in parts for stem in part["stems"]]
        self._open: dict[tuple[int, str], pq.ParquetFile] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.decode(index, *self.encoded(index))

    def encoded(self, index: int) -> tuple[bytes, bytes]:
        """The bytes of an image and of its labels. DatasetError that names the pair."""
        name, row = self.rows[index]
        try:
            pair = self._file(name).read_row_group(row, columns=["image", "labels"])
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(f"{self._where(index)}: {error}") from error
        return pair["image"][0].as_py(), pair["labels"][0].as_py()

    def decode(self, index: int, image_bytes: bytes, label_bytes: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Image and labels of pair `index` from their bytes. DatasetError that names the pair."""
        picture, labels = self.decode_picture(index, image_bytes, label_bytes)
        return np.array(picture), labels

    def decode_picture(self, index: int, image_bytes: bytes, label_bytes: bytes) -> tuple[Image.Image, np.ndarray]:
        """As `decode`, the image as Pillow's picture of mode RGB."""
        where = self._where(index)
        try:
            picture, labels = decode_picture(image_bytes), decode_labels(label_bytes)
        except ImageError as error:
            raise DatasetError(f"{where}: {error}") from error
        wrong = (labels >= len(self.classes)) & (labels != IGNORE)
        if labels.shape != (picture.height, picture.width) or wrong.any():
            raise DatasetError(f"{where}: labels of {labels.shape} with values that are not classes; the pack is damaged")
        return picture, labels

    def _where(self, index: int) -> str:
        return f"{self.place}/{self.rows[index][0]}, pair {self.stems[index]}"

    def _file(self, name: str) -> pq.ParquetFile:
        key = os.getpid(), name  # an open file does not survive a fork into a loader process
        if key not in self._open:
            self._open[key] = pq.ParquetFile(filesystems.open_file(filesystems.below(self.place, name)), pre_buffer=True)
        return self._open[key]

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self[index] for index in range(len(self)))

    def without(self, stems: Sequence[str]) -> Packed:
        """The same split without some pairs. DatasetError if none is left."""
        excluded = set(stems)
        kept = [index for index, stem in enumerate(self.stems) if stem not in excluded]
        if not kept:
            raise DatasetError(f"{self.place}: every pair of {self.split} is broken")
        smaller = copy.copy(self)
        smaller.rows, smaller.stems = [self.rows[index] for index in kept], [self.stems[index] for index in kept]
        return smaller


def open_dataset(place: str, split: str, layout: str = "auto") -> LabelledFolder | Packed:
    """One split of a folder in any layout, or of a pack, local or in a store."""
    files = filesystems.files(filesystems.canonical(place))
    if layout == "auto" and files.has(INDEX):
        return Packed(place, split)
    return LabelledFolder(files, split, layout)
