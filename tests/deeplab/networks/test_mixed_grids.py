"""Scores at a finer stride than the weights were trained at: the grids that never meet are averaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deeplab.networks.network import mixed_grids
from deeplab.zoo import build


@pytest.mark.parametrize("grids", [2, 4])
def test_what_differs_between_grids_only_vanishes_and_what_is_smooth_stays(grids):
    rows, columns = (axis.astype(np.float32) for axis in np.mgrid[:24, :24])
    offsets = np.random.default_rng(0).normal(size=(grids, grids)).astype(np.float32)
    ramp = 0.5 * rows - 0.25 * columns + 3
    uneven = ramp + np.tile(offsets, (24 // grids, 24 // grids))
    mixed = mixed_grids(torch.from_numpy(np.stack([ramp, uneven]))[None], grids)[0].numpy()
    inside = np.s_[grids:-grids, grids:-grids]
    np.testing.assert_allclose(mixed[0][inside], ramp[inside], rtol=1e-5)
    np.testing.assert_allclose(mixed[1][inside], ramp[inside] + offsets.mean(), rtol=1e-4, atol=1e-5)


def test_two_grids_are_mixed_by_one_two_one():
    maps = torch.randn(1, 1, 5, 6)
    x = np.pad(maps[0, 0].numpy().astype(np.float64), 1, mode="edge")
    rows = (x[:-2] + 2 * x[1:-1] + x[2:]) / 4
    np.testing.assert_allclose(mixed_grids(maps, 2)[0, 0], (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4, atol=1e-6)


@pytest.mark.parametrize("name", ["mobilenet-v2-aspp", "mobilenet-v2-image-pooling"])
def test_weights_trained_at_stride_16_are_mixed_at_8_alone(name):
    x = torch.randn(1, 3, 65, 97)
    for stride, mixed in ((8, True), (16, False)):
        plain, told = (build(name, 3, seed=0, output_stride=stride, trained_stride=trained).eval() for trained in (None, 16))
        assert plain.state_dict().keys() == told.state_dict().keys()
        with torch.no_grad():
            scores, with_mixing = plain(x), told(x)
        expected = mixed_grids(scores, 2) if mixed else scores
        torch.testing.assert_close(with_mixing, expected, rtol=0, atol=0)
        assert torch.equal(with_mixing, scores) != mixed
