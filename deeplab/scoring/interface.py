"""What scores images, whatever the model is: a network at its stride, a network by proposals, an ensemble."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from deeplab.placement import Placement
from deeplab.scoring.row_bands import Label, RowSource


class AnyPredictor(Protocol):
    """The part of deeplab.scoring.predictor.Predictor, which documents it, that does not depend on the kind of model."""

    device: torch.device
    precision: str
    dtype: torch.dtype
    tile: int

    @property
    def stride(self) -> int: ...

    def scores(self, images: Sequence[np.ndarray]) -> list[np.ndarray]: ...

    def labels(self, images: Sequence[np.ndarray]) -> list[np.ndarray]: ...

    def placement(self, scores: np.ndarray, height: int, width: int) -> Placement: ...

    def labels_of(self, scores: np.ndarray, height: int, width: int) -> np.ndarray: ...

    def upsampled(self, scores: np.ndarray, height: int, width: int) -> np.ndarray: ...

    def in_windows(self, height: int, width: int) -> bool: ...

    def label_bands(
        self, image: np.ndarray | RowSource, label: Label, margin: int, watch: Callable[[np.ndarray], None] = ...
    ) -> Iterator[np.ndarray]: ...
