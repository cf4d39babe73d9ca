"""A model against labels: one confusion matrix over a split, and one per trimap band where asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deeplab.metrics import Confusion, trimap_band
from deeplab.predictor import Predictor
from deeplab.ranks import Ranks
from deeplab.sampling import Labelled


@dataclass
class Evaluation:
    """`total` over all labelled pixels; `bands[w]` over those within w pixels of a void boundary."""

    total: Confusion
    bands: dict[int, Confusion] = field(default_factory=dict)

    def __add__(self, other: Evaluation) -> Evaluation:
        return Evaluation(self.total + other.total, {width: self.bands[width] + other.bands[width] for width in self.bands})


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
    network = predictor.network
    classes = len(data.classes)
    result = Evaluation(Confusion.empty(classes), {width: Confusion.empty(classes) for width in trimap})
    for first in range(0, len(data), ranks.size):
        done = min(first + ranks.size, len(data))
        if first + ranks.rank >= len(data):
            report(done, len(data))
            continue
        image, labels = data[first + ranks.rank]
        scores = predictor.scores([image])[0]
        if crf is None:
            predicted = predictor.labels_of(scores, *image.shape[:2])
        else:
            predicted = crf.labels(image, scores=scores, stride=network.stride, align_corners=network.align_corners)
        result.total.add(labels, predicted)
        for width, confusion in result.bands.items():
            confusion.add(labels, predicted, trimap_band(labels, width))
        look(first + ranks.rank, image, predicted)
        report(done, len(data))
    for confusion in (result.total, *result.bands.values()):
        confusion.counts = ranks.sum_counts(confusion.counts)
        confusion.missed = ranks.sum_counts(confusion.missed)
    return result
