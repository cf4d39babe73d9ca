"""Images whose scores are too large for memory: score, refine and encode them in bands of rows."""

from __future__ import annotations

import numpy as np

from deeplab import masks
from deeplab.classes import ClassTable
from deeplab.images.decoding import Header
from deeplab.images.row_windows import LargeImage
from deeplab.scoring.interface import AnyPredictor
from deeplab.scoring.multiscale import confidence
from deeplab.scoring.row_bands import Label, RowSource
from pipelines.table.schema import MaskColumns


def opened(encoded: bytes, header: Header, predictor: AnyPredictor, margin: int) -> LargeImage:
    """An image too large to decode whole, for `segment_large`: a context manager. Raises ImageError."""
    return LargeImage(encoded, header, 2 * (predictor.tile + margin))


def segment_large(
    image: np.ndarray | RowSource, predictor: AnyPredictor, label: Label, margin: int, classes: ClassTable
) -> MaskColumns:
    """The columns that describe an image's mask, without `refined` and `scored`. Raises ImageError.

    label, margin: as in `AnyPredictor.label_bands`.
    Memory: the encoded mask and a few thousand rows of pixels, however tall the image (docs/archives.md).
    """
    height, width, _ = image.shape
    confidences: list[tuple[float, int]] = []  # of a part of the scores, and its size
    pixels: dict[str, int] = {}
    png = masks.MaskPNG(height, width, classes)
    for labels in predictor.label_bands(image, label, margin, lambda part: confidences.append((confidence(part), part[0].size))):
        png.add(labels)
        for name, count in masks.class_pixels(labels, classes).items():
            pixels[name] = pixels.get(name, 0) + count
    values, sizes = zip(*confidences, strict=True)
    return MaskColumns(
        height=height,
        width=width,
        mask=png.finish(),
        class_pixels=list(pixels.items()),
        confidence=float(np.average(values, weights=sizes)),
        refined=None,
        scored=None,
    )
