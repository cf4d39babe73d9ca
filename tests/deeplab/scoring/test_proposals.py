from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deeplab.networks.network import Normalization, SegmentationNetwork
from deeplab.scoring.proposals import chosen_boxes, ensemble, proposal_scores


class Copies(nn.Module):
    """Scores are the pixels themselves, so that what was pasted can be read off."""

    output_stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.sizes: list[tuple[int, int]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append((x.shape[-2], x.shape[-1]))
        return x * self.gain


@pytest.fixture
def copies() -> SegmentationNetwork:
    return SegmentationNetwork(Copies(), nn.Identity(), 3, Normalization("RGB", (100.0,) * 3, (1.0,) * 3))


def flat(height: int, width: int, value: int) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_the_first_fifty_boxes_of_at_least_112_pixels_are_taken():
    boxes = np.array([[0, 0, 112 + i % 2 * -1, 200] for i in range(140)])
    chosen = chosen_boxes(boxes)
    assert len(chosen) == 50
    assert (chosen == [0, 0, 112, 200]).all()


def test_maxima_start_from_zero_and_means_count_the_boxes(copies):
    """Left half 130 (scores 30), right half 80 (scores -20); one box on each, one on both."""
    image = np.concatenate([flat(120, 120, 130), flat(120, 120, 80)], 1)
    boxes = [[0, 0, 120, 120], [120, 0, 240, 120]]
    largest = proposal_scores(copies, image, boxes)
    assert largest.shape == (3, 120, 240)
    np.testing.assert_allclose(largest[:, :, :120], 30, atol=1e-3)
    np.testing.assert_allclose(largest[:, :, 120:], 0)
    mean = proposal_scores(copies, image, [boxes[1], boxes[1]], "mean")
    np.testing.assert_allclose(mean[:, :, 120:], -20, atol=1e-3)
    np.testing.assert_allclose(mean[:, :, :120], 0)
    assert copies.backbone.sizes == [(224, 224)] * 4


def test_a_box_beyond_the_image_sees_black_there_and_pastes_only_inside(copies):
    image = flat(150, 150, 200)
    scores = proposal_scores(copies, image, [[-150, -150, 150, 150], [400, 0, 600, 200]], "mean")
    np.testing.assert_allclose(scores[:, 10:, 10:], 100, atol=1e-2)  # black beyond the corner reaches a few pixels in
    assert float(scores[0, 0, 0]) < 60
    assert len(copies.backbone.sizes) == 1


def test_a_pixel_keeps_its_place_through_a_box_of_another_size(copies):
    ramp = np.tile(np.linspace(0, 250, 448).astype(np.uint8)[None, :, None], (448, 1, 3))
    scores = proposal_scores(copies, ramp, [[0, 0, 448, 448]], "mean")
    np.testing.assert_allclose(scores[0, 100, 4:-4] + 100, ramp[100, 4:-4, 0], atol=1.5)


def test_ensembles_are_the_papers_mean_or_the_demos_product():
    deconvnet, fcn = np.array([[[2.0, -1.0]]]), np.array([[[-4.0, 3.0]]])
    np.testing.assert_array_equal(ensemble(deconvnet, fcn), [[[-1, 1]]])
    np.testing.assert_array_equal(ensemble(deconvnet, fcn, "product"), [[[0, -3]]])


@pytest.mark.parametrize("boxes", [[[0, 0, 5]], [[0.5, 0, 200, 200]], [[5, 5, 5, 200]]])
def test_boxes_that_are_none_are_refused(copies, boxes):
    with pytest.raises(ValueError, match="accepted"):
        proposal_scores(copies, flat(9, 9, 0), boxes)


def test_unknown_rules_are_refused(copies):
    with pytest.raises(ValueError, match="accepted"):
        proposal_scores(copies, flat(9, 9, 0), [[0, 0, 9, 9]], "sum")
    with pytest.raises(ValueError, match="accepted"):
        ensemble(np.zeros((1, 2, 2)), np.zeros((1, 2, 2)), "sum")
    with pytest.raises(ValueError, match="one shape"):
        ensemble(np.zeros((1, 2, 2)), np.zeros((1, 2, 3)))
