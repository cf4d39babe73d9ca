"""Images too large to decode whole: read, score, refine and encode them in bands of rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from deeplab import masks
from deeplab.classes import ClassTable
from deeplab.images.decoding import Header
from deeplab.images.row_windows import LargeImage
from deeplab.scoring.multiscale import confidence
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.row_bands import Label, label_rows
from pipelines.table.schema import MaskColumns


def segment_large(
    encoded: bytes, header: Header, predictor: Predictor, label: Label, margin: int, classes: ClassTable
) -> MaskColumns:
    """The columns that describe an image's mask, without `refined` and `scored`. Raises ImageError.

    label, margin: as in `label_rows`; its windows are the predictor's tiles plus the margin.
    Memory: the encoded image, the encoded mask and a few thousand rows of pixels, however tall the image (docs/archives.md).
    """
    side = predictor.tile - 1
    confidences: list[tuple[float, int]] = []  # of a band, and its rows

    def score_rows(image: LargeImage) -> Iterator[np.ndarray]:
        for band in predictor.score_rows(image):
            confidences.append((confidence(band), band.shape[1]))
            yield band

    pixels: dict[str, int] = {}
    png = masks.MaskPNG(header.height, header.width, classes)
    with LargeImage(encoded, header, predictor.tile + side + 2 * margin) as image:
        for labels in label_rows(image, score_rows(image), predictor.network.stride, label, side, margin):
            png.add(labels)
            for name, count in masks.class_pixels(labels, classes).items():
                pixels[name] = pixels.get(name, 0) + count
    values, rows = zip(*confidences, strict=True)
    return MaskColumns(
        height=header.height,
        width=header.width,
        mask=png.finish(),
        class_pixels=list(pixels.items()),
        confidence=float(np.average(values, weights=rows)),
        refined=None,
        scored=None,
    )
