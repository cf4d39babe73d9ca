"""The order of training crops: each is a pure function of its number, however many processes share the work."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset

from deeplab.data.augmentation import Augmentation
from deeplab.data.datasets import Labelled
from deeplab.data.object_crops import ObjectCrops
from deeplab.training.presets import TrainingConfig


class Samples(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The endless training sequence: sample n is always the same crop.

    Epoch e visits the images in an order drawn from (seed, e), and the augmentation of sample n draws from (seed, n).
    So a resumed run, or one with more loader processes or ranks, sees exactly the same crops as an undisturbed one.
    """

    def __init__(self, data: Labelled, augment: Augmentation | ObjectCrops, config: TrainingConfig) -> None:
        self.data, self.augment = data, augment
        self.seed, self.length = config.seed, config.steps * config.batch_size
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.length

    def image_of(self, number: int) -> int:
        """Index in the data set of the image that sample `number` shows."""
        epoch, position = divmod(number, len(self.data))
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.data))
        return int(self._order[1][position])

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng([self.seed, 2, number])
        index = self.image_of(number)
        image, labels = self.augment(*self.data.decode_picture(index, *self.data.encoded(index)), rng)
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(labels)


class Shares:
    """The sample numbers of one rank from step `start` on: `parts` passes per step, each a list of numbers.

    The `batch` samples of a step are divided in order over the ranks, and a rank's samples over its passes. So the samples
    of a step do not depend on how many ranks or passes share the work.
    """

    def __init__(self, batch: int, start: int, steps: int, rank: int = 0, size: int = 1, parts: int = 1) -> None:
        self.batch, self.start, self.steps = batch, start, steps
        bounds = [batch * k // (size * parts) for k in range(size * parts + 1)][rank * parts : (rank + 1) * parts + 1]
        self.ranges = [range(first, last) for first, last in itertools.pairwise(bounds)]

    def of_step(self, step: int) -> list[list[int]]:
        """Per pass, this rank's sample numbers of a step."""
        return [[step * self.batch + position for position in part] for part in self.ranges]

    def __iter__(self) -> Iterator[list[int]]:
        return (part for step in range(self.start, self.steps) for part in self.of_step(step))

    def __len__(self) -> int:
        return (self.steps - self.start) * len(self.ranges)
