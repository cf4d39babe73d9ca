"""The sweep over positions, and the class without a channel, against the routes that know neither."""

from __future__ import annotations

import numpy as np
import pytest

from deeplab.crf import DenseCRF
from tests.deeplab.crf.conftest import painted, smooth_scores


@pytest.mark.parametrize("deviation", [0.2, 0.7, 1.0, (1.0, 4.0), (5.0, 0.8), 40.0])
@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_the_sweep_filters_as_the_lattice_does(mode, deviation):
    """One thread sweeps; two filter the hashed lattice."""
    image, scores = painted(70, 45), smooth_scores(3, 70, 45)
    one, two = (DenseCRF(mode, pos_xy_std=deviation, bi_w=0, threads=n) for n in (1, 2))
    np.testing.assert_allclose(one.marginals(image, scores), two.marginals(image, scores), atol=2e-5)
    assert one.stats["gaussian_vertices"] == two.stats["gaussian_vertices"]


@pytest.mark.parametrize("classes", [5, 9, 21, 25])
@pytest.mark.parametrize("normalization", ["symmetric", "before", "after"])
def test_a_class_without_a_channel_has_the_marginal_that_the_others_leave(classes, normalization):
    image, scores = painted(40, 50), smooth_scores(classes, 40, 50)
    expected = DenseCRF("exact", normalization=normalization, backend="torch").marginals(image, scores)
    found = DenseCRF("exact", normalization=normalization).marginals(image, scores)
    assert np.abs(found - expected).mean() < 1e-6
    assert np.abs(found[-1] - expected[-1]).max() < 1e-3
    every_pixel = DenseCRF("fast", prune=0, freeze=0, normalization=normalization).marginals(image, scores)
    assert np.abs(every_pixel - expected).mean() < 1e-6
