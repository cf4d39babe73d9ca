"""A Hugging Face data set folder: photos and masks in Parquet shards, and a data set card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from deeplab.errors import ImageError
from deeplab.images.decoding import header
from pipelines.exports.source import Masks

# The hub's sizes for image data: row groups of 100 rows, so that its viewer reads little, and files of 500 MB.
GROUP_ROWS, GROUP_BYTES, SHARD_BYTES = 100, 64 << 20, 500_000_000


class Picture(TypedDict):
    """An encoded picture and its file name."""

    bytes: bytes
    path: str


class Example(TypedDict):
    """A row of SCHEMA."""

    image: Picture
    mask: Picture
    uri: str
    confidence: float


PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {
    "image": {"_type": "Image"},
    "mask": {"_type": "Image"},
    "uri": {"dtype": "string", "_type": "Value"},
    "confidence": {"dtype": "float32", "_type": "Value"},
}
SCHEMA = pa.schema(
    [("image", PICTURE), ("mask", PICTURE), ("uri", pa.string()), ("confidence", pa.float32())],
    metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
)


def write(source: Masks) -> None:
    """data/train-NNNNN.parquet (photo as it was segmented, palette PNG mask), README.md and id2label.json.

    Photos that changed since they were segmented are left out. Memory holds a row group.
    """
    source.refuse_earlier("data/train-*.parquet")
    shards = _Shards(source.folder / "data")
    for mask in source:
        if (encoded := source.photo(mask, unchanged=True)) is None:
            continue
        if header(encoded) is None:
            source.unusable(mask, ImageError("it is not an image"))
            continue
        example = Example(
            image=Picture(bytes=encoded, path=mask.printed),
            mask=Picture(bytes=mask.png, path=f"{mask.printed}.png"),
            uri=mask.uri,
            confidence=mask.confidence,
        )
        shards.add(example, len(encoded) + len(mask.png))
        source.wrote()
    shards.close()
    names = source.classes.names
    (source.folder / "id2label.json").write_text(json.dumps(dict(enumerate(names)), indent=2) + "\n", encoding="utf-8")
    (source.folder / "README.md").write_text(_card(source), encoding="utf-8")
    source.done.files = shards.files + 2


def _card(source: Masks) -> str:
    classes = "\n".join(f"| {index} | {name} |" for index, name in enumerate(source.classes.names))
    return f"""---
task_categories:
- image-segmentation
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---

# Masks by {source.model}

{source.done.images} photos with their masks by the model `{source.model}`: predictions, not labels by people.

    from datasets import load_dataset
    rows = load_dataset("path/of/this/folder", split="train")

`image` is the photo; `mask` a palette PNG of the same size, pixel value = class id; `confidence` the mean probability of
the winning class. The photos keep their own licences.

| id | class |
|---|---|
{classes}
"""


class _Shards:
    """Rows into Parquet files of about SHARD_BYTES, in row groups of up to GROUP_ROWS and about GROUP_BYTES."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, 0
        self.rows: list[Example] = []
        self.group_bytes = self.file_bytes = 0
        self.out: pq.ParquetWriter | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, row: Example, size: int) -> None:
        self.rows.append(row)
        self.group_bytes += size
        if len(self.rows) == GROUP_ROWS or self.group_bytes >= GROUP_BYTES:
            self._write_group()

    def close(self) -> None:
        if self.rows:
            self._write_group()
        if self.out is not None:
            self.out.close()
            self.out = None

    def _write_group(self) -> None:
        if self.out is not None and self.file_bytes + self.group_bytes > SHARD_BYTES:
            self.out.close()
            self.out = None
        if self.out is None:
            # No dictionaries: photos and masks are compressed already and hardly repeat.
            name = f"train-{self.files:05d}.parquet"
            self.out = pq.ParquetWriter(self.folder / name, SCHEMA, compression="none", use_dictionary=False)
            self.files, self.file_bytes = self.files + 1, 0
        self.out.write_table(pa.Table.from_pylist(self.rows, schema=SCHEMA))
        self.file_bytes += self.group_bytes
        self.rows, self.group_bytes = [], 0
