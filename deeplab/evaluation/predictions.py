"""Predictions against labels: one confusion matrix over a split, one per trimap band, and the same before the CRF."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deeplab.data.datasets import Labelled
from deeplab.evaluation.metrics import Confusion, trimap_band
from deeplab.ranks import Ranks
from deeplab.scoring.predictor import Predictor


@dataclass
class Evaluation:
    """`total` over all labelled pixels; `bands[w]` over those within w pixels of a void boundary.

    `before`: the same of what the CRF was given, where there was one. Mergeable with `+`.
    """

    total: Confusion
    bands: dict[int, Confusion] = field(default_factory=dict)
    before: Evaluation | None = None

    @classmethod
    def empty(cls, classes: int, trimap: Sequence[int] = (), refined: bool = False) -> Evaluation:
        bands = {width: Confusion.empty(classes) for width in trimap}
        return cls(Confusion.empty(classes), bands, cls.empty(classes, trimap) if refined else None)

    def add(self, labels: np.ndarray, predicted: np.ndarray | None, before: np.ndarray | None = None) -> None:
        """Count one image; `predicted` None: all its labelled pixels were missed."""
        if predicted is None:
            predicted = np.full(labels.shape, 65535, np.uint16)  # no class
        near = {width: trimap_band(labels, width) for width in self.bands}
        for target, found in ((self, predicted), (self.before, before)):
            if target is None or found is None:
                continue
            target.total.add(labels, found)
            for width, band in near.items():
                target.bands[width].add(labels, found, band)

    def confusions(self) -> Iterable[Confusion]:
        yield self.total
        yield from self.bands.values()
        if self.before is not None:
            yield from self.before.confusions()

    def __add__(self, other: Evaluation) -> Evaluation:
        bands = {width: self.bands[width] + other.bands[width] for width in self.bands}
        before = self.before + other.before if self.before is not None and other.before is not None else None
        return Evaluation(self.total + other.total, bands, before)

    def summary(self, names: Sequence[str]) -> dict[str, Any]:
        """All figures as plain numbers, JSON-ready: `trimap` maps widths to mIoU (None where no pixel is so near a void)."""
        found: dict[str, Any] = dict(self.total.summary(list(names)))
        found["trimap"] = {str(width): _number(confusion.mean_iou()) for width, confusion in self.bands.items()}
        found["confusion"] = self.total.counts.tolist()
        if self.before is not None:
            before = self.before.summary(names)
            found["before_crf"] = {key: before[key] for key in ("mean_iou", "pixel_accuracy", "iou", "trimap")}
        return found


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def predict(predictor: Predictor, image: np.ndarray, crf: Any = None) -> tuple[np.ndarray, np.ndarray | None]:
    """H x W x 3 -> the label map, and with a CRF (deeplab.crf.DenseCRF) also the one before it."""
    scores = predictor.scores([image])[0]
    plain = predictor.labels_of(scores, *image.shape[:2])
    if crf is None:
        return plain, None
    network = predictor.network
    return crf.labels(image, scores=scores, stride=network.stride, align_corners=network.align_corners), plain


def evaluate(
    predictor: Predictor,
    data: Labelled,
    *,
    crf: Any = None,
    trimap: Sequence[int] = (),
    ranks: Ranks | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
    look: Callable[[int, np.ndarray, np.ndarray], None] = lambda index, image, predicted: None,
) -> Evaluation:
    """Score every image of `data`, refine with `crf` (a deeplab.crf.DenseCRF) where given, and count.

    With several `ranks` each scores every size-th image, and all return the sum. `report` is told (done, total) after
    every round of them, on all ranks; `look` is given (index, image, label map) of the images that were scored here.
    Raises DatasetError for a pair that cannot be used.
    """
    ranks = ranks or Ranks()
    result = Evaluation.empty(len(data.classes), trimap, crf is not None)
    for first in range(0, len(data), ranks.size):
        done = min(first + ranks.size, len(data))
        if first + ranks.rank >= len(data):
            report(done, len(data))
            continue
        image, labels = data[first + ranks.rank]
        predicted, before = predict(predictor, image, crf)
        result.add(labels, predicted, before)
        look(first + ranks.rank, image, predicted)
        report(done, len(data))
    for confusion in result.confusions():
        confusion.counts = ranks.sum_counts(confusion.counts)
        confusion.missed = ranks.sum_counts(confusion.missed)
    return result
