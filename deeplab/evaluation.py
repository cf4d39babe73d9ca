"""A model against labels: one confusion matrix over a split, and one per trimap band where asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from deeplab.datasets import LabelledFolder
from deeplab.metrics import Confusion, trimap_band
from deeplab.predictor import Predictor


@dataclass
class Evaluation:
    """`total` over all labelled pixels; `bands[w]` over those within w pixels of a void boundary."""

    total: Confusion
    bands: dict[int, Confusion] = field(default_factory=dict)

    def __add__(self, other: Evaluation) -> Evaluation:
        return Evaluation(self.total + other.total, {width: self.bands[width] + other.bands[width] for width in self.bands})


def evaluate(
    predictor: Predictor,
    data: LabelledFolder,
    *,
    crf: Any = None,
    trimap: Sequence[int] = (),
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score every image of `data`, refine with `crf` (a deeplab.crf.DenseCRF) where given, and count.

    `report` is told (done, total) after every image. Raises DatasetError for a pair that cannot be used.
    """
    network = predictor.network
    classes = len(data.classes)
    result = Evaluation(Confusion.empty(classes), {width: Confusion.empty(classes) for width in trimap})
    for done, (image, labels) in enumerate(data, 1):
        scores = predictor.scores([image])[0]
        if crf is None:
            predicted = predictor.labels_of(scores, *image.shape[:2])
        else:
            predicted = crf.labels(image, scores=scores, stride=network.stride, align_corners=network.align_corners)
        result.total.add(labels, predicted)
        for width, confusion in result.bands.items():
            confusion.add(labels, predicted, trimap_band(labels, width))
        report(done, len(data))
    return result
