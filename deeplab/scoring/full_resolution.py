"""What predictors of a score at every pixel share: DeconvNet by proposals, ensembles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from deeplab.placement import Placement
from deeplab.scoring.multiscale import winning_classes
from deeplab.scoring.predictor import check_images
from deeplab.scoring.row_bands import Label, RowSource, label_windows
from deeplab.scoring.settings import Scoring


class FullResolutionPredictor(ABC):
    """An AnyPredictor whose scores are float32 C x H x W: 88 MB for 21 classes and the default tile, so images are scored
    one by one, and larger ones in windows (`label_bands`)."""

    stride = 1

    def __init__(self, scoring: Scoring, device: torch.device, precision: str, dtype: torch.dtype) -> None:
        self.tile, self.margin = scoring.tile, scoring.overlap // 2
        self.device, self.precision, self.dtype = device, precision, dtype

    @abstractmethod
    def scores_of(self, image: np.ndarray) -> np.ndarray:
        """H x W x 3 uint8 RGB -> class scores, float32 C x H x W."""

    def scores(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The scores of each image. Raises ValueError for another shape or dtype."""
        check_images(images)
        return [self.scores_of(image) for image in images]

    def labels(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """H x W x 3 uint8 RGB images -> label maps, H x W uint8 (uint16 above 256 classes)."""
        return [self.labels_of(self.scores([image])[0], *image.shape[:2]) for image in images]

    def labels_of(self, scores: np.ndarray, height: int, width: int) -> np.ndarray:
        """The class of the largest score at each pixel."""
        return winning_classes(scores, height, width, self.placement(scores, height, width))

    def placement(self, scores: np.ndarray, height: int, width: int) -> Placement:
        """A score on every pixel."""
        assert scores.shape[1:] == (height, width)
        return Placement.on_pixels((height, width))

    def upsampled(self, scores: np.ndarray, height: int, width: int) -> np.ndarray:
        """The scores themselves."""
        assert scores.shape[1:] == (height, width)
        return scores

    def in_windows(self, height: int, width: int) -> bool:
        """Whether an image is too large for the scores of all of it to be in memory: `label_bands` labels it."""
        return height * width > self.tile * self.tile

    def label_bands(
        self, image: np.ndarray | RowSource, label: Label, margin: int, watch: Callable[[np.ndarray], None] = lambda part: None
    ) -> Iterator[np.ndarray]:
        """As Predictor's. Every window has proposals of its own."""
        return label_windows(image, self, label, max(margin, self.margin), watch)
