"""A Hugging Face data set folder: photos and masks in Parquet shards, and its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deeplab.errors import ImageError
from deeplab.images.decoding import header
from pipelines.exports.source import Masks

# The hub's own sizes for image data: groups of 100 rows, so that its viewer need not read much, and files of 500 MB.
GROUP_ROWS, GROUP_BYTES, SHARD_BYTES = 100, 64 << 20, 500_000_000
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

    A photo that is not the very file that was segmented is left out. Memory holds a row group.
    """
    source.refuse_earlier("data/train-*.parquet")
    shards = _Shards(source.folder / "data")
    for mask in source:
        if (encoded := source.photo(mask, unchanged=True)) is None:
            continue
        if header(encoded) is None:
            source.unusable(mask, ImageError("it is no image"))
            continue
        shards.add(
            {
                "image": {"bytes": encoded, "path": mask.printed},
                "mask": {"bytes": mask.png, "path": f"{mask.printed}.png"},
                "uri": mask.uri,
                "confidence": mask.confidence,
            },
            len(encoded) + len(mask.png),
        )
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

{source.done.images} photos with the masks that the model `{source.model}` made of them: predictions, not labels by people.

    from datasets import load_dataset
    rows = load_dataset("path/of/this/folder", split="train")

`image` is the photo; `mask` a palette PNG of the same size, pixel value = class id; `confidence` the mean probability of
the winning class. The photos keep the licences that they have.

| id | class |
|---|---|
{classes}
"""


class _Shards:
    """Rows into Parquet files of about SHARD_BYTES, in row groups of up to GROUP_ROWS and about GROUP_BYTES."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, 0
        self.rows: list[dict[str, Any]] = []
        self.held = self.written = 0
        self.out: pq.ParquetWriter | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, row: dict[str, Any], size: int) -> None:
        self.rows.append(row)
        self.held += size
        if len(self.rows) == GROUP_ROWS or self.held >= GROUP_BYTES:
            self._group()

    def close(self) -> None:
        if self.rows:
            self._group()
        if self.out is not None:
            self.out.close()
            self.out = None

    def _group(self) -> None:
        if self.out is not None and self.written + self.held > SHARD_BYTES:
            self.out.close()
            self.out = None
        if self.out is None:
            # Photos and masks are compressed already, and hardly one is there twice.
            name = f"train-{self.files:05d}.parquet"
            self.out = pq.ParquetWriter(self.folder / name, SCHEMA, compression="none", use_dictionary=False)
            self.files, self.written = self.files + 1, 0
        self.out.write_table(pa.Table.from_pylist(self.rows, schema=SCHEMA))
        self.written += self.held
        self.rows, self.held = [], 0
