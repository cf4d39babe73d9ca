"""The engine against the definition. The lattice approximates the Gaussian kernels, so agreement is close, not exact."""

from __future__ import annotations

import numpy as np
import pytest

from deeplab.crf import DenseCRF
from tests.deeplab.crf.brute_force import gaussian_kernel, mean_field
from tests.deeplab.crf.conftest import painted, smooth_scores

IMAGES = [painted(30, 40, seed) for seed in range(3)]
SCORES = [smooth_scores(4, 30, 40, seed, amplitude=1.5) for seed in range(3)]


@pytest.mark.parametrize("normalization", ["symmetric", "after", "before"])
@pytest.mark.parametrize("deviations", [(1, 67, 3), (3, 20, 10)])
def test_exact_mode_follows_the_full_kernels(normalization, deviations):
    pos, xy, rgb = deviations
    crf = DenseCRF("exact", pos_xy_std=pos, bi_xy_std=xy, bi_rgb_std=rgb, normalization=normalization)
    differences, equal, moved = [], [], []
    for image, scores in zip(IMAGES, SCORES, strict=True):
        expected = mean_field(image, scores, crf.parameters)
        found = crf.marginals(image, scores)
        differences.append(np.abs(found - expected).mean())
        equal.append(found.argmax(0) == expected.argmax(0))
        moved.append(scores.argmax(0) != expected.argmax(0))
    assert np.mean(moved) > 0.05, "the CRF must have work to do for this test to mean anything"
    assert np.mean(differences) < 0.02
    assert np.mean(equal) > 0.96


def test_the_unary_alone_is_returned_after_no_iterations():
    probabilities = np.exp(SCORES[0]) / np.exp(SCORES[0]).sum(0)
    for mode in ("fast", "exact"):
        found = DenseCRF(mode, iterations=0).marginals(IMAGES[0], SCORES[0])
        np.testing.assert_allclose(found, probabilities, atol=2e-6)


def test_kernels_of_weight_zero_leave_the_softmax_of_the_scores():
    probabilities = np.exp(SCORES[0]) / np.exp(SCORES[0]).sum(0)
    found = DenseCRF("exact", pos_w=0, bi_w=0).marginals(IMAGES[0], SCORES[0])
    np.testing.assert_allclose(found, probabilities, atol=2e-6)


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4, 5, 6])
def test_the_filter_approximates_a_gaussian_in_every_dimension(dimensions):
    from deeplab.crf.native import engine_module

    rng = np.random.default_rng(dimensions)
    features = rng.uniform(0, 4, (700, dimensions)).astype(np.float32)
    values = rng.random((3, 700)).astype(np.float32)
    found = np.empty_like(values)
    engine_module().Filter(features).apply(values, found)
    kernel = gaussian_kernel(features.astype(float))
    # The lattice's response differs by a common factor and by its shape; both cancel in the normalised response.
    ones = np.empty((1, 700), np.float32)
    engine_module().Filter(features).apply(np.ones((1, 700), np.float32), ones)
    expected = values @ kernel.T / kernel.sum(1)
    relative = np.abs(found / ones - expected).mean() / expected.std()
    assert np.corrcoef((found / ones).ravel(), expected.ravel())[0, 1] > 0.9
    assert relative < 0.5


def test_the_response_to_ones_of_far_apart_points_is_the_point_itself():
    from deeplab.crf.native import engine_module

    # At the origin one vertex has all the weight. Blurring in three directions, it keeps 1 and gets 1/2 * 1/2 * 1/2 back
    # around the triangle of its simplex; the filter's gain is 1 / (1 + 2^-2).
    features = np.array([[0.0, 0.0], [1000.0, 1000.0]], np.float32)
    out = np.empty((1, 2), np.float32)
    engine_module().Filter(features).apply(np.ones((1, 2), np.float32), out)
    assert out[0, 0] == pytest.approx((1 + 1 / 8) / (1 + 1 / 4), rel=1e-6)
