"""COCO: annotations with compressed RLE, and panoptic segments as RGB PNGs of segment ids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, TypedDict

import numpy as np
from PIL import Image

from deeplab import masks
from deeplab.classes import ClassTable
from pipelines.exports.source import Masks


class Category(TypedDict):
    """A COCO category."""

    id: int
    name: str
    supercategory: str


class Segment(TypedDict):
    """A COCO panoptic segment. `bbox`: left, top, width, height."""

    id: int
    category_id: int
    area: int
    bbox: list[int]
    iscrowd: int


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

    A segment has the id of its category; background is COCO's void, 0. No category is a thing: a segment covers all of a class,
    however many objects it contains.
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
    """The category of class 0: COCO's categories begin at 1, and the background is not one."""
    return 1 if classes.background is None else 0


def _categories(classes: ClassTable) -> list[Category]:
    first = _first(classes)
    return [
        Category(id=index + first, name=name, supercategory=name)
        for index, name in enumerate(classes.names)
        if index != classes.background
    ]


def _segments(ids: np.ndarray) -> Iterator[Segment]:
    for index in np.unique(ids):
        if index:
            region = ids == index
            top, bottom = _span(region.any(1))
            left, right = _span(region.any(0))
            yield Segment(
                id=int(index),
                category_id=int(index),
                area=int(region.sum()),
                bbox=[left, top, right - left, bottom - top],
                iscrowd=0,
            )


def _span(mask: np.ndarray) -> tuple[int, int]:
    """The index of the first true value, and the one after the last."""
    places = np.flatnonzero(mask)
    return int(places[0]), int(places[-1]) + 1


class _Array:
    """The elements of a JSON array, written one by one."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.count = stream, 0

    def add(self, value: Mapping[str, object]) -> None:
        self.stream.write((",\n" if self.count else "\n") + json.dumps(value))
        self.count += 1


@contextmanager
def _document(path: Path, categories: Sequence[Mapping[str, object]]) -> Iterator[tuple[_Array, _Array]]:
    """Stream COCO JSON: images, and annotations through a temporary file, so that memory does not grow."""
    temporary_path = path.with_suffix(".annotations")
    try:
        with path.open("w", encoding="utf-8") as out, temporary_path.open("w+", encoding="utf-8") as annotations:
            out.write('{"categories": ' + json.dumps(categories) + ',\n"images": [')
            yield _Array(out), _Array(annotations)
            out.write('],\n"annotations": [')
            annotations.seek(0)
            while part := annotations.read(1 << 20):
                out.write(part)
            out.write("]}\n")
    finally:
        temporary_path.unlink(missing_ok=True)
