"""Agreement with pydensecrf on real photos, all normalisations; its own noise is far above these bars."""

from __future__ import annotations

import numpy as np
import pytest

from deeplab.crf import DenseCRF, compat
from tests.deeplab.crf.conftest import painted, smooth_scores

reference = pytest.importorskip("pydensecrf.densecrf", reason="no pydensecrf: make setup brings it")


def softmax(values):
    e = np.exp(values - values.max(0))
    return e / e.sum(0)


def test_exact_mode_is_pydensecrf_on_real_photos(photos):
    for seed, photo in enumerate(photos):
        scores = smooth_scores(21, 188, 250, seed)
        expected = DenseCRF(backend="pydensecrf").marginals(photo, scores)
        crf = DenseCRF("exact")
        difference = np.abs(crf.marginals(photo, scores) - expected)
        assert difference.mean() < 1e-6
        assert (difference < 1e-3).mean() >= 0.9999
        assert (crf.labels(photo, scores) == expected.argmax(0)).mean() >= 0.99999


def test_fast_mode_keeps_the_labels_on_real_photos(photos):
    for seed, photo in enumerate(photos):
        scores = smooth_scores(21, 188, 250, seed)
        scores[5 + seed :] -= 12  # most classes absent, as in real score maps
        crf = DenseCRF("fast")
        labels = crf.labels(photo, scores)
        assert crf.stats["classes_kept"] < 21
        assert (labels == DenseCRF(backend="pydensecrf").labels(photo, scores)).mean() >= 0.999


@pytest.mark.parametrize("normalization", ["symmetric", "after", "before", "none"])
def test_every_normalisation_means_what_it_means_there(normalization):
    image, scores = painted(60, 80), smooth_scores(5, 60, 80)
    weights = {"pos_w": 0.1, "bi_w": 0.02} if normalization == "none" else {}
    expected = DenseCRF(normalization=normalization, backend="pydensecrf", **weights).marginals(image, scores)
    for backend in ("native", "torch"):
        found = DenseCRF("exact", normalization=normalization, backend=backend, **weights).marginals(image, scores)
        np.testing.assert_allclose(found, expected, atol=1e-3)
        assert np.abs(found - expected).mean() < 1e-5


def test_deviations_may_differ_by_axis_and_channel():
    image, scores = painted(60, 80), smooth_scores(5, 60, 80)
    deviations = {"pos_xy_std": (1.0, 4.0), "bi_xy_std": (30.0, 60.0), "bi_rgb_std": (3.0, 9.0, 20.0)}
    expected = DenseCRF(backend="pydensecrf", **deviations).marginals(image, scores)
    np.testing.assert_allclose(DenseCRF("exact", **deviations).marginals(image, scores), expected, atol=1e-3)


def test_probabilities_are_treated_as_unary_from_softmax_does():
    image, probabilities = painted(60, 80), softmax(smooth_scores(5, 60, 80, amplitude=8))
    crf = reference.DenseCRF2D(80, 60, 5)
    crf.setUnaryEnergy(compat.unary_from_softmax(probabilities))
    crf.addPairwiseGaussian(sxy=1, compat=3)
    crf.addPairwiseBilateral(sxy=67, srgb=3, rgbim=image, compat=4)
    expected = np.array(crf.inference(10)).reshape(5, 60, 80)
    np.testing.assert_allclose(DenseCRF("exact").marginals(image, probabilities=probabilities), expected, atol=1e-3)


MATRIX = np.array([[0, 1, 2], [1, 0, 3], [2, 3, 0]], np.float32)


@pytest.mark.parametrize("weights", [3, np.array([-3, -2, -1], np.float32), MATRIX], ids=["scalar", "vector", "matrix"])
@pytest.mark.parametrize("kernel", ["CONST_KERNEL", "DIAG_KERNEL", "FULL_KERNEL"])
@pytest.mark.parametrize("normalization", ["NORMALIZE_SYMMETRIC", "NORMALIZE_AFTER", "NORMALIZE_BEFORE"])
def test_the_compatible_face_gives_the_same_marginals(weights, kernel, normalization):
    image, energy = painted(24, 32), compat.unary_from_softmax(softmax(smooth_scores(3, 24, 32)))
    results = []
    for module in (reference, compat):
        crf = module.DenseCRF2D(32, 24, 3)
        crf.setUnaryEnergy(energy)
        options = {"compat": weights, "kernel": getattr(module, kernel), "normalization": getattr(module, normalization)}
        crf.addPairwiseGaussian(sxy=(2, 3), **options)
        crf.addPairwiseBilateral(sxy=20, srgb=(10, 12, 14), rgbim=image, **options)
        results.append(np.array(crf.inference(5)))
    np.testing.assert_allclose(results[1], results[0], atol=2e-4)


def test_steps_and_divergence_follow_pydensecrf():
    image, energy = painted(24, 32), compat.unary_from_softmax(softmax(smooth_scores(3, 24, 32)))
    divergences = []
    for module in (reference, compat):
        crf = module.DenseCRF2D(32, 24, 3)
        crf.setUnaryEnergy(energy)
        crf.addPairwiseBilateral(sxy=20, srgb=10, rgbim=image, compat=3)
        q, tmp1, tmp2 = crf.startInference()
        row = [crf.klDivergence(q)]
        for _ in range(4):
            crf.stepInference(q, tmp1, tmp2)
            row.append(crf.klDivergence(q))
        divergences.append(row)
    np.testing.assert_allclose(divergences[1], divergences[0], rtol=1e-4)


def test_unaries_are_made_as_pydensecrf_makes_them():
    utilities = pytest.importorskip("pydensecrf.utils")
    probabilities = softmax(smooth_scores(4, 20, 30))
    np.testing.assert_allclose(compat.unary_from_softmax(probabilities), utilities.unary_from_softmax(probabilities), rtol=1e-6)
    scaled = compat.unary_from_softmax(probabilities, scale=0.7), utilities.unary_from_softmax(probabilities, scale=0.7)
    np.testing.assert_allclose(*scaled, rtol=1e-5)
    labels = np.random.default_rng(0).integers(0, 4, 50)
    expected = utilities.unary_from_labels(labels, 3, 0.7, zero_unsure=True)
    np.testing.assert_allclose(compat.unary_from_labels(labels, 3, 0.7), expected, rtol=1e-5)
    expected = utilities.unary_from_labels(labels, 4, 0.7, zero_unsure=False)
    np.testing.assert_allclose(compat.unary_from_labels(labels, 4, 0.7, zero_unsure=False), expected, rtol=1e-5)


def test_features_of_any_kind_filter_alike():
    rng = np.random.default_rng(3)
    features, energy = rng.uniform(0, 5, (3, 200)).astype(np.float32), rng.uniform(0, 2, (4, 200)).astype(np.float32)
    results = []
    for module in (reference, compat):
        crf = module.DenseCRF(200, 4)
        crf.setUnaryEnergy(energy)
        crf.addPairwiseEnergy(features, compat=2)
        results.append(np.array(crf.inference(5)))
    np.testing.assert_allclose(results[1], results[0], atol=2e-4)
