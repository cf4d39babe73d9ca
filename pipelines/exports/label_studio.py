"""Label Studio: tasks that show each photo with its mask as a prediction for people to correct."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from deeplab.classes import ClassTable
from pipelines.archive import shards
from pipelines.archive.shards import parts_of, path_of
from pipelines.exports.source import Mask, Masks
from pipelines.storage import filesystems

FILE_BYTES = 100_000_000  # of a file of tasks: Label Studio accepts up to 250 MB per import
SIZES = (3, 4, 8, 16)  # bits of a run's length: each run uses the smallest that fits
LONGEST = 1 << SIZES[-1]
MAX_PIXELS = (1 << 32) // 4 - 1  # the format counts four values per pixel in 32 bits


def write(source: Masks) -> None:
    """Files of tasks to import, tasks-0001.json and so on, and label-config.xml, the labelling interface that they need.

    Photos on S3 are named by their URI. Label Studio serves others from its local storage: they are named relative to the parent
    of the archive's folder (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT).
    """
    source.refuse_earlier("tasks-*.json")
    (source.folder / "label-config.xml").write_text(interface(source.classes), encoding="utf-8")
    tasks = _Tasks(source.folder)
    for mask in source:
        if shards.split(mask.uri):
            source.done.skip(mask.uri, "Label Studio opens no images inside shards; unpack them, or export as huggingface")
        elif mask.height * mask.width > MAX_PIXELS:
            source.done.skip(mask.uri, f"Label Studio's RLE is limited to {MAX_PIXELS:,} pixels; geotiff and png are not")
        else:
            tasks.add({"data": {"image": _address(source, mask), "uri": mask.uri}, "predictions": [_prediction(source, mask)]})
            source.wrote()
    tasks.close()
    source.done.files = tasks.files + 1


def interface(classes: ClassTable) -> str:
    """The labelling configuration: the image, and a brush for each class except the background."""
    lines = ["<View>", '  <Image name="image" value="$image" zoom="true"/>', '  <BrushLabels name="mask" toName="image">']
    for index, (name, colour) in enumerate(zip(classes.names, classes.colours, strict=True)):
        if index != classes.background:
            lines.append(f'    <Label value={quoteattr(name)} background="#{bytes(colour).hex()}"/>')
    return "\n".join([*lines, "  </BrushLabels>", "</View>", ""])


def rle(region: np.ndarray) -> list[int]:
    """An H x W bool region as the bytes of Label Studio's brush: thi.ng's rle-pack over RGBA values, 0 or 255, row by row.

    A header of 32 bits (number of values), 5 (bits of a value - 1) and 4 x 4 (SIZES - 1); then per run a 1, two bits that choose a
    size, the run's length - 1 in that many bits, and the value in 8.
    """
    flat = region.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths, values = np.diff(np.append(starts, flat.size)) * 4, flat[starts] * np.uint64(255)
    pieces = -(-lengths // LONGEST)  # a run that is too long for the largest size is split
    last = np.cumsum(pieces) - 1
    values, rest = np.repeat(values, pieces), lengths - (pieces - 1) * LONGEST
    lengths = np.full(len(values), LONGEST)
    lengths[last] = rest
    choice = np.searchsorted(1 << np.array(SIZES), lengths)
    bits = np.array(SIZES)[choice].astype(np.uint64)
    word = ((np.uint64(4) + choice.astype(np.uint64)) << bits | (lengths - 1).astype(np.uint64)) << np.uint64(8) | values
    head = np.uint64(flat.size * 4 << 21 | 7 << 16 | sum(size - 1 << 12 - 4 * place for place, size in enumerate(SIZES)))
    packed = np.concatenate([_bits(np.array([head]), np.array([53])), _bits(word, bits + np.uint64(11)), np.zeros(1, np.uint8)])
    return list(np.packbits(packed).tolist())


def _bits(words: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The lowest `counts` bits of each of `words`, one after the other, highest first: uint8 0 or 1."""
    bits = np.unpackbits(words.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1)
    lowest: np.ndarray = bits[np.arange(64) >= 64 - counts.astype(np.int64)[:, None]]
    return lowest


def _address(source: Masks, mask: Mask) -> str:
    if filesystems.is_s3(mask.uri):
        return mask.uri
    inside = path_of(parts_of(mask.uri)[max(1, len(source.shared) - 1) :], local=True)
    return f"/data/local-files/?d={quote(os.fsencode(inside))}"


def _prediction(source: Masks, mask: Mask) -> dict[str, object]:
    return {"model_version": source.model, "score": mask.confidence, "result": list(_brushes(source, mask))}


def _brushes(source: Masks, mask: Mask) -> Iterator[dict[str, object]]:
    labels = mask.labels()
    for index in np.unique(labels):
        if index != source.classes.background:
            yield {
                "id": f"class-{index}",
                "type": "brushlabels",
                "from_name": "mask",
                "to_name": "image",
                "original_width": mask.width,
                "original_height": mask.height,
                "image_rotation": 0,
                "value": {"format": "rle", "rle": rle(labels == index), "brushlabels": [source.classes.names[index]]},
            }


class _Tasks:
    """JSON arrays of tasks in files of about FILE_BYTES each."""

    out: TextIO

    def __init__(self, folder: Path) -> None:
        self.folder, self.files, self.size = folder, 0, 0

    def add(self, task: dict[str, object]) -> None:
        text = json.dumps(task)
        if self.files and self.size + len(text) > FILE_BYTES:
            self.close()
        if not self.size:
            self.files += 1
            self.out = (self.folder / f"tasks-{self.files:04d}.json").open("w", encoding="utf-8")
        self.out.write(("[\n" if not self.size else ",\n") + text)
        self.size += len(text)

    def close(self) -> None:
        if self.size:
            self.out.write("\n]\n")
            self.out.close()
            self.size = 0
