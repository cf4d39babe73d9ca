"""Predictions against labels: a confusion matrix for a split and for each trimap band, after and before the CRF."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NotRequired, Protocol, TypedDict

import numpy as np

from deeplab.data.datasets import Labelled
from deeplab.distributed import Ranks
from deeplab.evaluation.metrics import Confusion, Summary, trimap_band
from deeplab.placement import Placement
from deeplab.scoring.interface import AnyPredictor
from deeplab.scoring.multiscale import winning_classes
from deeplab.scoring.row_bands import CRF_MARGIN


class BeforeCRF(TypedDict):
    """The figures before the CRF that are compared with those after it."""

    mean_iou: float
    pixel_accuracy: float
    iou: dict[str, float | None]
    trimap: dict[str, float | None]


class EvaluationSummary(Summary):
    """`trimap`: width -> mIoU, None if no pixel lies in the band; `confusion`: true class x predicted class."""

    trimap: dict[str, float | None]
    confusion: list[list[int]]
    before_crf: NotRequired[BeforeCRF]


@dataclass
class Evaluation:
    """`total` over all labelled pixels; `bands[w]` over those within w pixels of a void boundary.

    `before`: the same before the CRF, if there is one. Add evaluations with `+`.
    """

    total: Confusion
    bands: dict[int, Confusion] = field(default_factory=dict)
    before: Evaluation | None = None

    @classmethod
    def empty(cls, classes: int, trimap: Sequence[int] = (), refined: bool = False) -> Evaluation:
        bands = {width: Confusion.empty(classes) for width in trimap}
        return cls(Confusion.empty(classes), bands, cls.empty(classes, trimap) if refined else None)

    def add(self, labels: np.ndarray, predicted: np.ndarray | None, before: np.ndarray | None = None) -> None:
        """Count one image; `predicted` None: all its labelled pixels are missed."""
        if predicted is None:
            predicted = np.full(labels.shape, 65535, np.uint16)  # no class
        bands = {width: trimap_band(labels, width) for width in self.bands}
        for target, label_map in ((self, predicted), (self.before, before)):
            if target is None or label_map is None:
                continue
            target.total.add(labels, label_map)
            for width, band in bands.items():
                target.bands[width].add(labels, label_map, band)

    def confusions(self) -> Iterable[Confusion]:
        yield self.total
        yield from self.bands.values()
        if self.before is not None:
            yield from self.before.confusions()

    def __add__(self, other: Evaluation) -> Evaluation:
        bands = {width: self.bands[width] + other.bands[width] for width in self.bands}
        before = self.before + other.before if self.before is not None and other.before is not None else None
        return Evaluation(self.total + other.total, bands, before)

    def summary(self, names: Sequence[str]) -> EvaluationSummary:
        """All figures as plain numbers."""
        summary: EvaluationSummary = {
            **self.total.summary(names),
            "trimap": {str(width): _number(confusion.mean_iou()) for width, confusion in self.bands.items()},
            "confusion": self.total.counts.tolist(),
        }
        if self.before is not None:
            before = self.before.summary(names)
            summary["before_crf"] = {
                "mean_iou": before["mean_iou"],
                "pixel_accuracy": before["pixel_accuracy"],
                "iou": before["iou"],
                "trimap": before["trimap"],
            }
        return summary


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


class Refiner(Protocol):
    """What refines label maps: deeplab.crf.DenseCRF."""

    def labels(self, image: np.ndarray, scores: np.ndarray, *, placement: Placement) -> np.ndarray: ...


def predict(predictor: AnyPredictor, image: np.ndarray, crf: Refiner | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """H x W x 3 -> the label map, and with a CRF also the one before it. Memory is bounded as in `AnyPredictor.label_bands`."""

    def label(pixels: np.ndarray, scores: np.ndarray, placement: Placement) -> np.ndarray:
        """h x w x 1 or 2: the label map, and the one before the CRF."""
        maps = [winning_classes(scores, pixels.shape[0], pixels.shape[1], placement)]
        if crf is not None:
            maps.insert(0, crf.labels(pixels, scores, placement=placement))
        return np.stack(maps, axis=-1)

    if predictor.in_windows(*image.shape[:2]):
        both = np.concatenate(list(predictor.label_bands(image, label, 0 if crf is None else CRF_MARGIN)))
    else:
        scores = predictor.scores([image])[0]
        both = label(image, scores, predictor.placement(scores, *image.shape[:2]))
    return both[..., 0], None if crf is None else both[..., 1]


def evaluate(
    predictor: AnyPredictor,
    data: Labelled,
    *,
    crf: Refiner | None = None,
    trimap: Sequence[int] = (),
    ranks: Ranks | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
    look: Callable[[int, np.ndarray, np.ndarray], None] = lambda index, image, predicted: None,
) -> Evaluation:
    """Score every image of `data`, refine it with `crf` if there is one, and count.

    With several `ranks` each scores every size-th image, and all return the sum. `report` is called with (done, total)
    after every round of images, on all ranks; `look` with (index, image, label map) of the images scored by this rank.
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
