"""Images in bands of rows: what comes out is what the whole image gives, and no more of it is ever asked for."""

from __future__ import annotations

import numpy as np
import pytest

from deeplab.crf import DenseCRF
from deeplab.placement import Placement
from deeplab.scoring.multiscale import winning_classes
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.row_bands import label_rows
from deeplab.scoring.settings import Scoring


class Rows:
    """An image that gives slices of rows and notes which."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.shape, self.asked = pixels, pixels.shape, []

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.asked.append((rows.start, min(rows.stop, self.shape[0])))
        return self.pixels[rows]


@pytest.mark.parametrize("shape", [(300, 200), (129, 400), (1000, 60), (60, 1000), (137, 136)])
def test_score_rows_make_up_the_scores_and_ask_for_tiles_from_top_to_bottom(small_network, photo, shape):
    image = Rows(photo(*shape))
    predictor = Predictor(small_network(), Scoring(tile=129, overlap=40), device="cpu")
    parts = list(predictor.score_rows(image))
    np.testing.assert_array_equal(np.concatenate(parts, 1), predictor.scores([image.pixels])[0])
    assert image.asked == sorted(image.asked)
    assert all(bottom - top <= 129 for top, bottom in image.asked)
    assert len(parts) == len(image.asked)


def test_a_part_of_the_scores_comes_before_the_rows_below_are_read(small_network, photo):
    image = Rows(photo(500, 60))
    parts = Predictor(small_network(), Scoring(tile=129, overlap=40), device="cpu").score_rows(image)
    for count in (1, 2, 3):
        next(parts)
        assert len(image.asked) == count


@pytest.mark.parametrize("shape", [(300, 421), (128, 129), (1, 200), (200, 1), (257, 64)])
@pytest.mark.parametrize(
    "placed",
    [
        lambda grid, size: Placement.stepping(grid, 1 / 8),
        lambda grid, size: Placement.stepping(grid, 1 / 8, align_corners=False),
        lambda grid, size: Placement.resized(grid, size, align_corners=False),
        lambda grid, size: Placement.resized(grid, size, align_corners=True),
    ],
    ids=["stride", "areas", "resized areas", "resized"],
)
def test_windows_without_a_crf_give_the_labels_of_the_whole(rng, shape, placed):
    image = Rows(np.zeros((*shape, 3), np.uint8))
    height, width = shape
    scores = rng.normal(size=(4, -(-(height - 1) // 8) + 1, -(-(width - 1) // 8) + 1)).astype(np.float16)
    placement = placed(scores.shape[1:], shape)
    whole = winning_classes(scores, height, width, placement)

    def label(pixels: np.ndarray, part: np.ndarray, on_window: Placement) -> np.ndarray:
        return winning_classes(part, *pixels.shape[:2], on_window)

    parts = (scores[:, top : top + 5] for top in range(0, scores.shape[1], 5))
    bands = list(label_rows(image, parts, placement, label, 64, 8))
    assert [len(band) for band in bands] == [min(64, height - top) for top in range(0, height, 64)]
    np.testing.assert_array_equal(np.concatenate(bands), whole)
    assert all(bottom - top <= 64 + 2 * 8 for top, bottom in image.asked)


def test_windows_with_a_margin_refine_nearly_as_the_whole_does(photo, rng):
    """The CRF's widest kernel has a deviation of 20 pixels here. Scores of mere noise on a smooth picture are the worst case:

    one label in a hundred hangs on where the lattice's cells lie, which starts anew in each window; the rest are seams.
    """
    image = photo(300, 330)
    noise = rng.normal(size=(3, 39, 43)).astype(np.float32)
    scores = (image[::8, ::8].transpose(2, 0, 1)[:, :38, :42] / 64.0 + noise[:, :38, :42]).astype(np.float16)
    scores = np.pad(scores, ((0, 0), (0, 39 - scores.shape[1]), (0, 43 - scores.shape[2])), mode="edge")
    crf = DenseCRF(bi_xy_std=20.0, bi_rgb_std=10.0)
    placement = Placement.stepping(scores.shape[1:], 1 / 8)
    whole = crf.labels(image, scores, placement=placement)

    def label(pixels: np.ndarray, part: np.ndarray, on_window: Placement) -> np.ndarray:
        return crf.labels(pixels, part, placement=on_window)

    def share(margin: int) -> float:
        return float((np.concatenate(list(label_rows(image, [scores], placement, label, 96, margin))) != whole).mean())

    assert share(40) < 0.015
    assert share(40) < share(0) / 2
