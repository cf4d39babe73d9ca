"""Scores at low resolution: where score (i, j) lies, and what is held of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from deeplab.crf import DenseCRF
from deeplab.placement import Placement
from deeplab.scoring.multiscale import upsample
from tests.deeplab.crf.conftest import painted, smooth_scores


def low_scores(classes, height, width, stride, seed=0):
    rng = np.random.default_rng(seed)
    shape = classes, -(-(height - 1) // stride) + 1, -(-(width - 1) // stride) + 1
    return rng.normal(0, 3, shape).astype(np.float16)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("height", "width", "stride"), [(41, 57, 8), (50, 61, 8), (33, 20, 4), (8, 9, 8), (1, 30, 8)])
def test_interpolation_is_the_predictors(height, width, stride, align_corners, backend):
    image, scores = painted(height, width), low_scores(6, height, width, stride)
    full = upsample(scores, height, width, Placement.stepping(scores.shape[1:], 1 / stride, align_corners))
    expected = torch.from_numpy(full).softmax(0).numpy()
    crf = DenseCRF("exact", iterations=0, backend=backend)
    found = crf.marginals(image, scores, stride=stride, align_corners=align_corners)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_pixels_under_a_score_read_it_unmixed():
    scores = low_scores(4, 33, 41, 8)
    found = DenseCRF("exact", iterations=0).marginals(painted(33, 41), scores, stride=8)
    expected = torch.from_numpy(scores.astype(np.float32)).softmax(0).numpy()
    np.testing.assert_allclose(found[:, ::8, ::8], expected, atol=1e-6)


def test_interpolation_is_torch_interpolate_where_both_are_defined():
    scores = low_scores(4, 33, 41, 8)
    tensor = torch.from_numpy(scores.astype(np.float32))[None]
    aligned = F.interpolate(tensor, (33, 41), mode="bilinear", align_corners=True).softmax(1)[0].numpy()
    crf = DenseCRF("exact", iterations=0)
    np.testing.assert_allclose(crf.marginals(painted(33, 41), scores, stride=8), aligned, atol=1e-5)
    areas = F.interpolate(tensor, (40, 48), mode="bilinear", align_corners=False).softmax(1)[0].numpy()
    found = crf.marginals(painted(40, 48), scores, stride=8, align_corners=False)
    np.testing.assert_allclose(found, areas, atol=1e-5)


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_low_resolution_gives_what_the_upsampled_scores_give(mode):
    image, scores = painted(90, 120), low_scores(21, 90, 120, 8)
    scores[6:] -= 10
    crf = DenseCRF(mode)
    low = crf.labels(image, scores, stride=8)
    full = crf.labels(image, upsample(scores, 90, 120, Placement.stepping(scores.shape[1:], 1 / 8)))
    assert (low == full).mean() > (0.999 if mode == "fast" else 0.99999)


def test_probabilities_are_interpolated_as_probabilities():
    scores = low_scores(5, 41, 57, 8).astype(np.float32)
    probabilities = torch.from_numpy(scores).softmax(0).numpy()
    expected = np.maximum(upsample(probabilities, 41, 57, Placement.stepping(probabilities.shape[1:], 1 / 8)), 1e-5)
    for mode in ("exact", "fast"):
        found = DenseCRF(mode, iterations=0).marginals(painted(41, 57), probabilities=probabilities, stride=8)
        np.testing.assert_allclose(found, expected / expected.sum(0), atol=1e-5)


def test_a_class_that_wins_only_between_two_scores_is_kept():
    # At the scores the middle class loses by far; half way it wins. Pruning at the scores alone would lose it.
    scores = np.zeros((23, 2, 2), np.float32) - 30
    scores[0, :, 0] = scores[1, :, 1] = 20
    scores[0, :, 1] = scores[1, :, 0] = 0
    scores[2] = 14
    crf = DenseCRF("fast", iterations=0)
    labels = crf.labels(painted(9, 9), scores, stride=8)
    assert crf.stats["classes_kept"] == 3
    assert labels[4].tolist() == [0, 0, 0, 2, 2, 2, 1, 1, 1]


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_fast_mode_keeps_few_classes_of_many(mode):
    scores = smooth_scores(60, 12, 12)
    scores[4:] -= 30
    crf = DenseCRF(mode)
    crf.labels(painted(89, 89), scores, stride=8)
    assert crf.stats["classes_kept"] == (4 if mode == "fast" else 60)
