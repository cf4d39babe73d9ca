"""What a preset leaves to the training set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deeplab.data.inspection import Inspection
from deeplab.training.adaptation import LEAST_STEPS, MOST_STEPS, adapted, as_begun, class_weights
from deeplab.training.presets import TrainingConfig

CONFIG = TrainingConfig("t", "small", steps=7, batch_size=8, crop=100, passes=30.0, class_balance=0.5, known_classes_rate=0.5)


def inspection(*pixels: int) -> Inspection:
    counts = np.array([*pixels, 5_000])  # the last are ignored pixels
    return Inspection("train", ["a", "b", "c"], 10, counts, (counts > 0) * 10)


@pytest.mark.parametrize(
    ("pixels", "steps"), [(4_000_000, 1500), (1000, LEAST_STEPS), (10**12, MOST_STEPS)]
)  # 30 x 4e6 / (8 x 100 x 100)
def test_the_steps_see_every_labelled_pixel_so_often_within_limits(pixels, steps):
    assert adapted(CONFIG, inspection(pixels // 2, pixels // 4, pixels // 4), []).steps == steps


def test_the_weight_of_a_class_falls_with_the_power_of_its_share_and_the_mean_pixel_has_one():
    shares = np.array([0.9, 0.09, 0.01])
    weights = np.array(class_weights(shares * 1e6, 0.5))
    np.testing.assert_allclose(weights / weights[0], (0.9 / shares) ** 0.5, rtol=1e-3)
    assert (weights * shares).sum() == pytest.approx(1, rel=1e-3)
    full = np.array(class_weights(shares * 1e6, 1.0)) * shares
    np.testing.assert_allclose(full, 1 / 3, rtol=1e-3)
    assert np.isfinite(class_weights(np.array([10.0, 0.0]), 1.0)).all()  # a class that never occurs


def test_a_preset_that_leaves_nothing_open_stays_as_it_is_and_a_resumed_run_has_what_it_began_with():
    fixed = replace(CONFIG, passes=0.0, class_balance=0.0, known_classes_rate=1.0)
    assert adapted(fixed, inspection(1, 2, 3), ["a", "b", "c"]) == fixed
    begun = adapted(CONFIG, inspection(3_000_000, 900_000, 100_000), ["a", "b"])
    assert len(begun.class_weights) == 3
    assert as_begun(CONFIG, begun.as_dict()) == begun
    assert as_begun(fixed, begun.as_dict()) == fixed


def test_the_rate_is_lower_where_the_start_knows_more_than_half_of_the_classes():
    rates = [adapted(CONFIG, inspection(1, 1, 1), known).learning_rate for known in ([], ["c", "x"], ["c", "a"], ["a", "b", "c"])]
    assert rates == [CONFIG.learning_rate * factor for factor in (1, 1, 0.5, 0.5)]
