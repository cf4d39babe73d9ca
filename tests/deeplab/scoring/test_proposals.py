from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deeplab.networks.network import Normalization, SegmentationNetwork
from deeplab.region_proposals import Proposals, chosen_boxes
from deeplab.scoring.proposals import ProposalPredictor
from deeplab.scoring.settings import Scoring


class Copies(nn.Module):
    """Scores are the pixels themselves, so that what was pasted can be read off."""

    output_stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-2:] == (224, 224)
        return x * self.gain


@pytest.fixture
def copies() -> ProposalPredictor:
    network = SegmentationNetwork(Copies(), nn.Identity(), 3, Normalization("RGB", (100.0,) * 3, (1.0,) * 3))
    return ProposalPredictor(network, Proposals(), Scoring(precision="float32"), device="cpu")


def flat(height: int, width: int, value: int) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_maxima_start_from_zero_and_means_count_the_boxes(copies):
    """Left half 130 (scores 30), right half 80 (scores -20); one box on each, one on both."""
    image = np.concatenate([flat(120, 120, 130), flat(120, 120, 80)], 1)
    boxes = np.array([[0, 0, 120, 120], [120, 0, 240, 120]])
    largest = copies.scores_of_boxes(image, boxes, "max")
    assert largest.shape == (3, 120, 240) and largest.dtype == np.float32
    np.testing.assert_allclose(largest[:, :, :120], 30, atol=1e-3)
    np.testing.assert_allclose(largest[:, :, 120:], 0)
    mean = copies.scores_of_boxes(image, boxes[[1, 1]], "mean")
    np.testing.assert_allclose(mean[:, :, 120:], -20, atol=1e-3)
    np.testing.assert_allclose(mean[:, :, :120], 0)


def test_a_box_beyond_the_image_sees_black_there_and_pastes_only_inside(copies):
    image = flat(150, 150, 200)
    scores = copies.scores_of_boxes(image, np.array([[-150, -150, 150, 150], [400, 0, 600, 200], [-9, -9, 0, 9]]), "mean")
    np.testing.assert_allclose(scores[:, 10:, 10:], 100, atol=1e-2)  # black beyond the corner reaches a few pixels in
    assert float(scores[0, 0, 0]) < 60


def test_a_pixel_keeps_its_place_through_a_box_of_another_size(copies):
    ramp = np.tile(np.linspace(0, 250, 448).astype(np.uint8)[None, :, None], (448, 1, 3))
    scores = copies.scores_of_boxes(ramp, np.array([[0, 0, 448, 448]]), "mean")
    np.testing.assert_allclose(scores[0, 100, 4:-4] + 100, ramp[100, 4:-4, 0], atol=1.5)


def test_an_image_is_scored_by_its_own_proposals(copies, photo):
    image = photo(150, 190).copy()
    image[20:140, 40:170] = 255 - image[20:140, 40:170]
    boxes = chosen_boxes(image, Proposals())
    assert len(boxes) > 1
    np.testing.assert_array_equal(copies.scores([image])[0], copies.scores_of_boxes(image, boxes, "max"))
    assert [labels.shape for labels in copies.labels([image, photo(30, 40)])] == [(150, 190), (30, 40)]


def test_a_network_without_a_score_for_every_pixel_is_refused(small_network):
    with pytest.raises(ValueError, match="every pixel, this has one for 8"):
        ProposalPredictor(small_network(), Proposals())


def test_other_arrays_than_images_are_refused(copies):
    with pytest.raises(ValueError, match="H x W x 3 uint8 RGB is accepted"):
        copies.scores([np.zeros((9, 9), np.uint8)])
