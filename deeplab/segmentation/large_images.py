"""Images too large to decode whole: scored and labelled in bands of rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from deeplab.images.decoding import Header
from deeplab.images.row_windows import LargeImage
from deeplab.scoring.multiscale import confidence
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.row_bands import Label, label_rows

MARGIN = 64  # pixels that the CRF sees around each window


def labels_by_rows(encoded: bytes, header: Header, predictor: Predictor, label: Label, refined: bool) -> tuple[np.ndarray, float]:
    """Labels, H x W, and the mean confidence. `label`: as in `label_rows`; `refined`: whether it looks at neighbouring pixels.

    Beside the labels, memory holds the encoded image and a few thousand rows of pixels. Raises ImageError.
    """
    side, margin = predictor.tile - 1, MARGIN if refined else predictor.network.stride
    confidences: list[tuple[float, int]] = []  # of a band, and its rows

    def score_rows(image: LargeImage) -> Iterator[np.ndarray]:
        for band in predictor.score_rows(image):
            confidences.append((confidence(band), band.shape[1]))
            yield band

    with LargeImage(encoded, header, predictor.tile + side + 2 * margin) as image:
        bands = list(label_rows(image, score_rows(image), predictor.network.stride, label, side, margin))
    values, rows = zip(*confidences, strict=True)
    return np.concatenate(bands), float(np.average(values, weights=rows))
