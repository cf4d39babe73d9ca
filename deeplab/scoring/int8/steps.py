"""A network as steps, in order: what calibration and the oneDNN way compute one after the other.

Value 0 is the image, R, G, B; value k is the result of the k-th step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from deeplab.networks.network import Normalization
from deeplab.scoring.batch_norm_folding import Convolution

PIXELS = 0


@dataclass(frozen=True)
class Convolved:
    """A convolution, then its activation. sources: values whose channels it reads one after the other; the image comes alone.

    shortcut: a value that is added before the activation. pooled: the value of an `ImageMean`, which is added, too, and its
    weights, N x K.
    """

    sources: tuple[int, ...]
    convolution: Convolution
    stride: int = 1
    rate: int = 1
    padding: int = 0
    shortcut: int | None = None
    pooled: tuple[int, np.ndarray] | None = None

    @property
    def kernel(self) -> int:
        return int(self.convolution.weight.shape[-1])

    def inputs(self) -> tuple[int, ...]:
        extra = [value for value in (self.shortcut, self.pooled and self.pooled[0]) if value is not None]
        return (*self.sources, *extra)

    def side(self, length: int) -> int:
        """Rows (or columns) of the result."""
        return (length + 2 * self.padding - self.rate * (self.kernel - 1) - 1) // self.stride + 1


@dataclass(frozen=True)
class MaxPool:
    """torch's max_pool2d."""

    source: int
    kernel: int
    stride: int
    padding: int
    ceil: bool

    def inputs(self) -> tuple[int, ...]:
        return (self.source,)

    def side(self, length: int) -> int:
        """Rows (or columns) of the result."""
        room = length + 2 * self.padding - self.kernel
        count = (-(-room // self.stride) if self.ceil else room // self.stride) + 1
        # A last window must begin inside the map or the padding before it.
        return count - (self.ceil and (count - 1) * self.stride >= length + self.padding)


@dataclass(frozen=True)
class ImageMean:
    """The mean of each channel over the whole map, through a 1x1 convolution, in float: one vector an image."""

    source: int
    convolution: Convolution

    def inputs(self) -> tuple[int, ...]:
        return (self.source,)


@dataclass(frozen=True)
class Branch:
    """A 1x1 or dilated 3x3 convolution that keeps the map's size, straight to class scores."""

    source: int
    convolution: Convolution
    rate: int = 1

    @property
    def kernel(self) -> int:
        return int(self.convolution.weight.shape[-1])


@dataclass(frozen=True)
class Scores:
    """The last step: branches whose scores are summed, in float."""

    branches: tuple[Branch, ...]

    def inputs(self) -> tuple[int, ...]:
        return tuple(branch.source for branch in self.branches)

    def bias(self) -> np.ndarray:
        total: np.ndarray = np.sum([branch.convolution.bias for branch in self.branches], axis=0)
        return total

    def by_source(self) -> dict[int, list[Branch]]:
        sources: dict[int, list[Branch]] = {}
        for branch in self.branches:
            sources.setdefault(branch.source, []).append(branch)
        return sources


Step = Convolved | MaxPool | ImageMean | Scores


@dataclass
class Steps:
    """The steps of a network; the last is its only `Scores`."""

    normalization: Normalization
    steps: list[Step] = field(default_factory=list)

    def add(self, step: Step) -> int:
        """Append a step; returns the number of its value."""
        self.steps.append(step)
        return len(self.steps)

    def last_uses(self) -> list[set[int]]:
        """For each step the values that no later one reads."""
        later: set[int] = set()
        unused: list[set[int]] = []
        for step in reversed(self.steps):
            unused.append(set(step.inputs()) - later)
            later |= unused[-1]
        return unused[::-1]


def taps(weights: Sequence[np.ndarray]) -> np.ndarray:
    """All taps of several convolutions of one tensor as one 1x1: outputs by convolution, row, column and class."""
    rows = [weight.transpose(2, 3, 0, 1).reshape(-1, weight.shape[1]) for weight in weights]
    return np.concatenate(rows)[:, :, None, None]
