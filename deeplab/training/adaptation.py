"""What a preset leaves to the training set and the start: steps, the weights of classes in the loss, the learning rate."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from deeplab.data.inspection import Inspection
from deeplab.training.presets import TrainingConfig

LEAST_STEPS, MOST_STEPS = 600, 6000  # of `passes`; --steps is not limited
LEAST_SHARE = 1e-3  # rarer classes are weighted like this one, so that a few odd pixels cannot rule the loss


def adapted(config: TrainingConfig, training: Inspection, known: Collection[str]) -> TrainingConfig:
    """The configuration with `steps`, `class_weights` and `learning_rate` as they follow, if it leaves them open.

    `known`: the classes that the weights to start from have scores of.
    """
    if 2 * sum(name in known for name in training.classes) > len(training.classes):
        config = replace(config, learning_rate=config.learning_rate * config.known_classes_rate)
    pixels = training.pixels[:-1].astype(np.float64)
    if config.passes:
        steps = config.passes * pixels.sum() / (config.batch_size * config.crop**2)
        config = replace(config, steps=int(np.clip(round(steps), LEAST_STEPS, MOST_STEPS)))
    if config.class_balance:
        config = replace(config, class_weights=class_weights(pixels, config.class_balance))
    return config


def class_weights(pixels: np.ndarray, power: float) -> tuple[float, ...]:
    """Pixels by class -> (1 / share) ** power, scaled so that their mean over the pixels is 1. Absent classes count as rare."""
    shares = pixels / pixels.sum()
    weights = (1 / np.maximum(shares, LEAST_SHARE)) ** power
    return tuple(float(weight) for weight in np.round(weights / (weights * shares).sum(), 4))


def as_begun(config: TrainingConfig, record: dict[str, Any]) -> TrainingConfig:
    """A resumed run's configuration with what was open when it began (`record`: the stored configuration)."""
    values: dict[str, Any] = {}
    if config.known_classes_rate != 1:
        values["learning_rate"] = record.get("learning_rate", config.learning_rate)
    if config.passes:
        values["steps"] = record.get("steps", config.steps)
    if config.class_balance:
        values["class_weights"] = tuple(record.get("class_weights", ()))
    return replace(config, **values)
