"""Images whose pixels or scores are too large for memory: opened by rows, labelled in bands."""

from __future__ import annotations

import numpy as np

from deeplab.images.decoding import Header
from deeplab.images.row_windows import LargeImage
from deeplab.scoring.interface import AnyPredictor
from deeplab.scoring.multiscale import confidence
from deeplab.scoring.row_bands import CRF_MARGIN


def margin_of(predictor: AnyPredictor, refined: bool) -> int:
    """The margin of `AnyPredictor.label_bands`: what the CRF, or the interpolation of scores, sees around a window."""
    return CRF_MARGIN if refined else predictor.stride


def opened(encoded: bytes, header: Header, predictor: AnyPredictor, margin: int) -> LargeImage:
    """An image too large to decode whole, for `AnyPredictor.label_bands`: a context manager. Raises ImageError."""
    return LargeImage(encoded, header, 2 * (predictor.tile + margin))


class MeanConfidence:
    """The confidence of an image from the parts of its scores, for the `watch` of `label_bands`."""

    def __init__(self) -> None:
        self.parts: list[tuple[float, int]] = []  # of a part, and its size

    def watch(self, scores: np.ndarray) -> None:
        self.parts.append((confidence(scores), scores[0].size))

    @property
    def mean(self) -> float:
        values, sizes = zip(*self.parts, strict=True)
        return float(np.average(values, weights=sizes))
