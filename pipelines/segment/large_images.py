"""Images whose scores are too large for memory: score, refine and encode them in bands of rows."""

from __future__ import annotations

import numpy as np

from deeplab import masks
from deeplab.classes import ClassTable
from deeplab.scoring.interface import AnyPredictor
from deeplab.scoring.row_bands import Label, RowSource
from deeplab.segmentation.large_images import MeanConfidence
from pipelines.table.schema import MaskColumns


def segment_large(
    image: np.ndarray | RowSource, predictor: AnyPredictor, label: Label, margin: int, classes: ClassTable
) -> MaskColumns:
    """The columns that describe an image's mask, without `refined` and `scored`. Raises ImageError.

    label, margin: as in `AnyPredictor.label_bands`.
    Memory: the encoded mask and a few thousand rows of pixels, however tall the image (docs/archives.md).
    """
    height, width, _ = image.shape
    sure = MeanConfidence()
    pixels: dict[str, int] = {}
    png = masks.MaskPNG(height, width, classes)
    for labels in predictor.label_bands(image, label, margin, sure.watch):
        png.add(labels)
        for name, count in masks.class_pixels(labels, classes).items():
            pixels[name] = pixels.get(name, 0) + count
    return MaskColumns(
        height=height,
        width=width,
        mask=png.finish(),
        class_pixels=list(pixels.items()),
        confidence=sure.mean,
        refined=None,
        scored=None,
    )
