"""The whole way of an image that is too large to be decoded: read, score, refine and encode it in bands of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from deeplab import masks
from deeplab.classes import ClassTable
from deeplab.images.decoding import Header
from deeplab.images.row_windows import LargeImage
from deeplab.scoring.multiscale import confidence
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.row_bands import Label, label_rows


def segment_large(
    encoded: bytes, header: Header, predictor: Predictor, label: Label, margin: int, classes: ClassTable
) -> dict[str, Any]:
    """The columns height, width, mask, class_pixels and confidence of an image. Raises ImageError.

    label, margin: as `label_rows` takes them; its windows are as large as the predictor's tiles, and the margin.
    Memory: the encoded image and mask, and a few thousand rows of pixels, however many there are (docs/archives.md).
    """
    side = predictor.tile - 1
    certain: list[tuple[float, int]] = []

    def score_rows(image: LargeImage) -> Iterator[np.ndarray]:
        for part in predictor.score_rows(image):
            certain.append((confidence(part), part.shape[1]))
            yield part

    pixels: dict[str, int] = {}
    png = masks.MaskPNG(header.height, header.width, classes)
    with LargeImage(encoded, header, predictor.tile + side + 2 * margin) as image:
        for labels in label_rows(image, score_rows(image), predictor.network.stride, label, side, margin):
            png.add(labels)
            for name, count in masks.class_pixels(labels, classes).items():
                pixels[name] = pixels.get(name, 0) + count
    values, rows = zip(*certain, strict=True)
    found = {"height": header.height, "width": header.width, "mask": png.finish(), "class_pixels": list(pixels.items())}
    return {**found, "confidence": float(np.average(values, weights=rows))}
