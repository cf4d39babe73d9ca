"""COCO: annotations with compressed RLE, and panoptic segments as RGB PNGs of ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from deeplab import masks
from deeplab.classes import ClassTable
from pipelines.exports.source import Masks


def rle(source: Masks) -> None:
    """coco.json: an annotation per image and class with the compressed RLE of its whole region, `iscrowd` 1."""
    first = _first(source.classes)
    with _document(source.folder / "coco.json", _categories(source.classes)) as (images, annotations):
        for number, mask in enumerate(source, 1):
            images.add({"id": number, "file_name": mask.name, "height": mask.height, "width": mask.width})
            for annotation in masks.coco_annotations(mask.labels(), number, source.classes.background):
                annotation["category_id"] += first
                annotations.add({"id": annotations.count + 1, **annotation})
            source.wrote()
    source.done.files = 1


def panoptic(source: Masks) -> None:
    """panoptic.json, and panoptic/NAME.png of segment ids (R + 256 G + 65536 B): a segment per image and class.

    A segment has its category's id; background is COCO's void, 0. No category is a thing: a segment is all of a class,
    however many objects it holds.
    """
    first = _first(source.classes)
    categories = [
        {**category, "isthing": 0, "color": list(source.classes.colours[category["id"] - first])}
        for category in _categories(source.classes)
    ]
    with _document(source.folder / "panoptic.json", categories) as (images, annotations):
        for number, mask in enumerate(source, 1):
            ids, target = mask.labels().astype(np.uint32) + first, source.target(mask, ".png", "panoptic")
            Image.fromarray(np.stack([ids >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)).save(target)
            images.add({"id": number, "file_name": mask.name, "height": mask.height, "width": mask.width})
            name = target.relative_to(source.folder / "panoptic").as_posix()
            annotations.add({"image_id": number, "file_name": name, "segments_info": list(_segments(ids))})
            source.wrote(1)
    source.done.files += 1


def _first(classes: ClassTable) -> int:
    """The category of class 0: COCO's begin at 1, and a background is none."""
    return 1 if classes.background is None else 0


def _categories(classes: ClassTable) -> list[dict[str, Any]]:
    first = _first(classes)
    return [
        {"id": index + first, "name": name, "supercategory": name}
        for index, name in enumerate(classes.names)
        if index != classes.background
    ]


def _segments(ids: np.ndarray) -> Iterator[dict[str, Any]]:
    for index in np.unique(ids):
        if index:
            region = ids == index
            top, bottom = _span(region.any(1))
            left, right = _span(region.any(0))
            yield {
                "id": int(index),
                "category_id": int(index),
                "area": int(region.sum()),
                "bbox": [left, top, right - left, bottom - top],
                "iscrowd": 0,
            }


def _span(marked: np.ndarray) -> tuple[int, int]:
    """The first marked place, and the one after the last."""
    places = np.flatnonzero(marked)
    return int(places[0]), int(places[-1]) + 1


class _Array:
    """The elements of a JSON array, written one by one."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.count = stream, 0

    def add(self, value: dict[str, Any]) -> None:
        self.stream.write((",\n" if self.count else "\n") + json.dumps(value))
        self.count += 1


@contextmanager
def _document(path: Path, categories: list[dict[str, Any]]) -> Iterator[tuple[_Array, _Array]]:
    """Stream COCO JSON, images and annotations: the latter to a side file first, so that memory does not grow with masks."""
    side_path = path.with_suffix(".annotations")
    try:
        with path.open("w", encoding="utf-8") as out, side_path.open("w+", encoding="utf-8") as side:
            out.write('{"categories": ' + json.dumps(categories) + ',\n"images": [')
            yield _Array(out), _Array(side)
            out.write('],\n"annotations": [')
            side.seek(0)
            while part := side.read(1 << 20):
                out.write(part)
            out.write("]}\n")
    finally:
        side_path.unlink(missing_ok=True)
