"""Segmentation metrics from one confusion matrix per data set (never a mean of per-image scores)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from deeplab.classes import IGNORE


class Summary(TypedDict):
    """The figures of a confusion matrix, 0..1 (NaN if undefined); `iou`: by class name, None for classes that do not occur."""

    mean_iou: float
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    iou: dict[str, float | None]
    pixels: int


@dataclass
class Confusion:
    """`counts[t, p]`: labelled pixels of true class t with predicted class p; C x C int64. Add matrices with `+`.

    `missed[t]`: labelled pixels of class t whose predicted id is outside 0..C-1: wrong, but in no column.
    """

    counts: np.ndarray
    missed: np.ndarray

    @classmethod
    def empty(cls, classes: int) -> Confusion:
        return cls(np.zeros((classes, classes), np.int64), np.zeros(classes, np.int64))

    def add(self, labels: np.ndarray, predicted: np.ndarray, where: np.ndarray | None = None) -> None:
        """Count one image. labels, predicted: H x W ids; pixels with label 255, or where `where` is False, do not count.

        Raises ValueError if the shapes differ or a label is neither 255 nor a class id.
        """
        if labels.shape != predicted.shape:
            raise ValueError(f"labels are {labels.shape}, the prediction is {predicted.shape}")
        classes = len(self.counts)
        valid = labels != IGNORE
        if where is not None:
            valid &= where
        truth, prediction = labels[valid].astype(np.int64), predicted[valid].astype(np.int64)
        wrong = truth[(truth < 0) | (truth >= classes)]
        if wrong.size:
            raise ValueError(f"label {wrong[0]} is outside 0..{classes - 1} and not {IGNORE}")
        inside = (prediction >= 0) & (prediction < classes)
        self.missed += np.bincount(truth[~inside], minlength=classes)
        pairs = truth[inside] * classes + prediction[inside]
        self.counts += np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.counts + other.counts, self.missed + other.missed)

    @property
    def truth(self) -> np.ndarray:
        """Labelled pixels per class."""
        pixels: np.ndarray = self.counts.sum(1) + self.missed
        return pixels

    def iou(self) -> np.ndarray:
        """Intersection over union per class; NaN for a class that occurs neither in the labels nor the prediction."""
        hit = np.diag(self.counts).astype(np.float64)
        union = self.truth + self.counts.sum(0) - hit
        iou: np.ndarray = np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)
        return iou

    def mean_iou(self) -> float:
        """Mean IoU over the classes that occur."""
        iou = self.iou()
        return float(np.nanmean(iou)) if not np.isnan(iou).all() else float("nan")

    def pixel_accuracy(self) -> float:
        total = self.truth.sum()
        return float(np.diag(self.counts).sum() / total) if total else float("nan")

    def mean_accuracy(self) -> float:
        """Mean, over the classes that occur in the labels, of the share of their pixels that is predicted correctly."""
        truth = self.truth
        present = truth > 0
        return float((np.diag(self.counts)[present] / truth[present]).mean()) if present.any() else float("nan")

    def frequency_weighted_iou(self) -> float:
        """Per-class IoU weighted by the class's share of the labelled pixels (Long et al. 2015, section 5)."""
        truth = self.truth
        present = truth > 0
        return float((self.iou()[present] * truth[present]).sum() / truth.sum()) if present.any() else float("nan")

    def summary(self, names: Sequence[str] = ()) -> Summary:
        """All figures as plain numbers; IoU by class id without `names`."""
        iou = self.iou()
        keys = names or [str(index) for index in range(len(iou))]
        return {
            "mean_iou": self.mean_iou(),
            "pixel_accuracy": self.pixel_accuracy(),
            "mean_accuracy": self.mean_accuracy(),
            "frequency_weighted_iou": self.frequency_weighted_iou(),
            "iou": {key: (None if np.isnan(value) else float(value)) for key, value in zip(keys, iou, strict=True)},
            "pixels": int(self.truth.sum()),
        }


def trimap_band(labels: np.ndarray, width: int) -> np.ndarray:
    """Pixels within `width` (Chebyshev distance, >= 1) of a void region: H x W bool.

    In this band DeepLab v1 and v2 measure boundaries (arXiv 1606.00915, figure 10): VOC's labels mark object boundaries
    with 255, and the narrower the band around them, the harder the pixels.
    """
    if width < 1:
        raise ValueError(f"trimap width {width}: at least 1 pixel")
    band: np.ndarray = labels == IGNORE
    for axis in (0, 1):  # a square window is separable: a running maximum along rows, then columns
        length = band.shape[axis]
        padding = [(0, 0), (0, 0)]
        padding[axis] = (width + 1, width)
        total = np.cumsum(np.pad(band, padding).astype(np.int64), axis=axis)
        upper = np.take(total, np.arange(length) + 2 * width + 1, axis=axis)
        lower = np.take(total, np.arange(length), axis=axis)
        band = upper > lower
    band &= labels != IGNORE
    return band
