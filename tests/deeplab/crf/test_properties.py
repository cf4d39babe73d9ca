"""What must hold for any image and scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deeplab.crf import DenseCRF
from tests.deeplab.crf.conftest import painted, smooth_scores
from tests.examples import examples

MODES = pytest.mark.parametrize("mode", ["fast", "exact", "half"])


def assert_distribution(marginals):
    assert np.isfinite(marginals).all()
    assert marginals.min() >= 0
    np.testing.assert_allclose(marginals.sum(0), 1, atol=1e-4)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1),
    st.sampled_from(["fast", "exact", "half"]),
    st.floats(0.2, 1e4), st.floats(0.2, 1e4), st.floats(0.5, 1e4), st.floats(0, 50),
    st.sampled_from(["symmetric", "after", "before", "none"]), st.sampled_from([4, 8, 24]),
)  # fmt: skip
def test_marginals_are_distributions(height, width, classes, seed, mode, pos, xy, rgb, weight, normalization, block):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    scores = (rng.normal(0, 4, (classes, height, width))).astype(np.float32)
    crf = DenseCRF(
        mode, iterations=3, pos_w=weight, bi_w=weight, pos_xy_std=pos, bi_xy_std=xy, bi_rgb_std=rgb,
        normalization=normalization, block_lanes=block,
    )  # fmt: skip
    marginals = crf.marginals(image, scores)
    assert_distribution(marginals)
    labels = crf.labels(image, scores)
    best = np.take_along_axis(marginals, labels[None].astype(np.int64), 0)[0]
    assert (best >= marginals.max(0) - 1e-6).all()


@MODES
def test_classes_may_be_permuted(mode):
    image, scores = painted(50, 70), smooth_scores(13, 50, 70)
    order = np.random.default_rng(1).permutation(13)
    crf = DenseCRF(mode)
    np.testing.assert_allclose(crf.marginals(image, scores[order]), crf.marginals(image, scores)[order], atol=2e-3)


@MODES
def test_a_constant_image_with_constant_scores_stays_constant_inside(mode):
    image = np.full((60, 60, 3), 90, np.uint8)
    scores = np.zeros((3, 60, 60), np.float32)
    scores[1] = 1
    labels = DenseCRF(mode).labels(image, scores)
    assert (labels == 1).all()


@MODES
def test_one_class_is_certain(mode):
    marginals = DenseCRF(mode).marginals(painted(20, 30), np.zeros((1, 20, 30), np.float32))
    np.testing.assert_allclose(marginals, 1, atol=1e-6)


@MODES
def test_three_hundred_classes_give_uint16_labels_and_agree_in_any_block_width(mode):
    image, scores = painted(30, 40), smooth_scores(300, 30, 40)
    crf = DenseCRF(mode)
    labels = crf.labels(image, scores)
    assert labels.dtype == np.uint16
    assert labels.max() > 255
    np.testing.assert_array_equal(labels, DenseCRF(mode, block_lanes=8).labels(image, scores))
    assert DenseCRF(mode).labels(image, scores[:256]).dtype == np.uint8


@MODES
@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (17, 16), (16, 33)])
def test_thin_and_tiny_images(mode, shape):
    marginals = DenseCRF(mode).marginals(painted(*shape), smooth_scores(5, *shape))
    assert marginals.shape == (5, *shape)
    assert_distribution(marginals)


@MODES
def test_layout_and_precision_of_the_input_do_not_matter(mode):
    image, scores = painted(50, 70), smooth_scores(6, 50, 70).round(1).astype(np.float16)
    crf = DenseCRF(mode)
    expected = crf.marginals(image, scores.astype(np.float32))
    turned = np.asfortranarray(scores)
    doubled = np.repeat(scores, 2, axis=2)[:, :, ::2]
    flipped = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    for values in (scores, scores.astype(np.float64), turned, doubled):
        np.testing.assert_array_equal(crf.marginals(image, values), expected)
    np.testing.assert_array_equal(crf.marginals(flipped, scores), expected)
    image.flags.writeable = False
    np.testing.assert_array_equal(crf.marginals(image, scores), expected)


@MODES
def test_a_constant_added_to_all_scores_of_a_pixel_changes_nothing(mode):
    image, scores = painted(50, 70), smooth_scores(6, 50, 70)
    moved = scores + np.random.default_rng(0).normal(0, 5, (50, 70)).astype(np.float32)
    crf = DenseCRF(mode)
    np.testing.assert_allclose(crf.marginals(image, moved), crf.marginals(image, scores), atol=5e-3)


@MODES
def test_extreme_scores_stay_finite(mode):
    image = painted(30, 40)
    for scale in (1e-30, 1e4, 1e30):
        scores = np.clip(smooth_scores(7, 30, 40) / 20, -1, 1) * np.float32(scale)
        assert_distribution(DenseCRF(mode).marginals(image, scores))


@MODES
def test_huge_deviations_join_everything_and_small_ones_nothing(mode):
    image, scores = painted(40, 40), smooth_scores(3, 40, 40)
    scores[2] += 2
    joined = DenseCRF(mode, pos_w=0, bi_w=50, bi_xy_std=1e6, bi_rgb_std=1e6).labels(image, scores)
    assert (joined == 2).mean() > 0.99
    # Alone on its vertices a pixel hears only itself, which confirms its label.
    alone = DenseCRF(mode, pos_xy_std=0.01, bi_xy_std=0.05, bi_rgb_std=2).labels(image, scores)
    np.testing.assert_array_equal(alone, scores.argmax(0))


def test_fast_mode_without_its_approximations_is_exact_mode():
    image, scores = painted(60, 80), smooth_scores(9, 60, 80)
    found = DenseCRF("fast", prune=0, freeze=0).marginals(image, scores)
    np.testing.assert_allclose(found, DenseCRF("exact").marginals(image, scores), atol=1e-3)


def test_the_mass_of_dropped_classes_is_kept():
    image, scores = painted(60, 80), smooth_scores(40, 60, 80, amplitude=1)
    scores[:3] += 4.5
    crf = DenseCRF("fast")
    found, expected = crf.marginals(image, scores), DenseCRF("exact").marginals(image, scores)
    assert crf.stats["classes_kept"] < 40
    np.testing.assert_allclose(found[3:].sum(0).mean(), expected[3:].sum(0).mean(), rtol=0.3)
    assert_distribution(found)
