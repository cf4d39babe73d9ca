"""Half mode is fast mode on the halved photo, brought back: held against torch's averages and interpolation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from deeplab.crf import DenseCRF
from deeplab.placement import Placement
from deeplab.scoring.multiscale import upsample, winning_classes
from deeplab.scoring.row_bands import label_rows
from tests.deeplab.crf.conftest import painted, smooth_scores

SIZES = [(41, 57), (40, 48), (33, 20), (1, 1), (1, 30), (29, 1), (2, 3)]
HALVED: dict[str, Any] = {"pos_xy_std": 0.5, "bi_xy_std": 33.5}


def averaged(array: np.ndarray) -> torch.Tensor:
    """Means of 2 x 2 values of C x H x W; those of an odd last row or column are of the values that exist."""
    tensor = torch.from_numpy(array.astype(np.float32))[None]
    return F.avg_pool2d(tensor, 2, ceil_mode=True, count_include_pad=False)[0]


def by_hand(image: np.ndarray, full: np.ndarray, mode: str = "fast", **options: Any) -> np.ndarray:
    """Half mode's marginals from scores at the image's size, C x H x W."""
    small = averaged(image.transpose(2, 0, 1)).add(0.5).floor().to(torch.uint8).permute(1, 2, 0).numpy()
    crf = DenseCRF(mode, **HALVED, **options)  # type: ignore[arg-type]
    marginals = torch.from_numpy(crf.marginals(small, averaged(full).numpy()))
    doubled = F.interpolate(marginals[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
    return doubled[:, : image.shape[0], : image.shape[1]].numpy()


@pytest.mark.parametrize("shape", SIZES)
def test_half_mode_is_fast_mode_on_the_halved_photo(shape: tuple[int, int]) -> None:
    image, scores = painted(*shape), smooth_scores(7, *shape)
    expected = by_hand(image, scores)
    crf = DenseCRF("half")
    np.testing.assert_allclose(crf.marginals(image, scores), expected, atol=1e-5)
    labels = crf.labels(image, scores)
    assert labels.shape == shape
    top = np.take_along_axis(expected, labels[None].astype(np.int64), 0)[0]
    assert (top >= expected.max(0) - 1e-5).all()


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("height", "width", "stride"), [(41, 57, 8), (50, 62, 8), (33, 20, 4), (8, 9, 8), (1, 30, 8)])
def test_scores_are_read_at_the_middle_of_two_pixels(height: int, width: int, stride: int, align_corners: bool) -> None:
    rows, columns = (-(-(n - 1) // stride) + 1 for n in (height, width))
    scores = np.random.default_rng(0).normal(0, 2, (3, rows, columns)).astype(np.float16)
    y, x = (np.minimum(np.arange(0, n, 2) + 0.5, n) for n in (height, width))
    y, x = (v / stride if align_corners else (v + 0.5) / stride - 0.5 for v in (y, x))
    y, x = np.clip(y, 0, rows - 1), np.clip(x, 0, columns - 1)
    down, across = (np.maximum(1 - np.abs(v[:, None] - np.arange(n)), 0) for v, n in ((y, rows), (x, columns)))
    read = torch.from_numpy(np.einsum("yi,cij,xj->cyx", down, scores.astype(np.float64), across)).softmax(0).float()
    expected = F.interpolate(read[None], scale_factor=2, mode="bilinear", align_corners=False)[0, :, :height, :width]
    for backend in ("native", "torch"):
        crf = DenseCRF("half", iterations=0, backend=backend)  # type: ignore[arg-type]
        found = crf.marginals(painted(height, width), scores, stride=stride, align_corners=align_corners)
        np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("backend", ["torch", "pydensecrf"])
@pytest.mark.parametrize("shape", [(41, 57), (40, 48), (1, 30)])
def test_other_backends_do_the_same_without_other_approximations(backend: str, shape: tuple[int, int]) -> None:
    if backend == "pydensecrf":
        pytest.importorskip("pydensecrf.densecrf", reason="no pydensecrf: make setup brings it")
    image, scores = painted(*shape), smooth_scores(5, *shape)
    peer = DenseCRF("half", backend=backend)  # type: ignore[arg-type]
    expected = DenseCRF("half", prune=0, freeze=0).marginals(image, scores)
    np.testing.assert_allclose(peer.marginals(image, scores), expected, atol=2e-3)
    assert (peer.labels(image, scores) == expected.argmax(0)).mean() > 0.999
    assert peer.short() == f"half i10 pos3/1 bi4/67/3 sym {backend}"


def test_labels_stay_close_to_those_at_full_size(photos: list[np.ndarray]) -> None:
    scores = smooth_scores(21, 25, 33)
    scores[5:] -= 50
    changed_by_half, changed_by_the_crf = 0, 0
    for photo in photos:
        full, half = (DenseCRF(mode).labels(photo, scores, stride=8) for mode in ("fast", "half"))  # type: ignore[arg-type]
        unrefined = winning_classes(scores, *photo.shape[:2], Placement.stepping((25, 33), 1 / 8))
        assert (half == full).mean() > 0.97
        changed_by_half += (half != full).sum()
        changed_by_the_crf += (unrefined != full).sum()
    assert changed_by_half < 0.6 * changed_by_the_crf


def test_a_bad_score_among_three_good_ones_is_found() -> None:
    scores = np.zeros((3, 8, 11), np.float32)
    for value in (np.nan, np.inf, 2e30):
        scores[1, 7, 10] = value
        with pytest.raises(ValueError, match="finite"):
            DenseCRF("half").labels(painted(8, 11), scores)


def test_windows_of_a_large_image_start_on_whole_pairs() -> None:
    """Positions are shared by windows and the whole image, so that labels differ by what lies beyond the margin only."""
    image, grid = painted(150, 170), smooth_scores(3, 20, 23)
    crf = DenseCRF("half", iterations=2, bi_xy_std=4.0)
    placement = Placement.stepping(grid.shape[1:], 1 / 8)
    bands = label_rows(
        image, [grid], placement, lambda pixels, scores, on: crf.labels(pixels, scores, placement=on), side=64, margin=32
    )
    expected = crf.labels(image, grid, stride=8)
    assert (np.concatenate(list(bands)) == expected).mean() > 0.998


def test_full_size_scores_and_their_grid_agree() -> None:
    image, scores = painted(90, 121), smooth_scores(9, 13, 17)
    crf = DenseCRF("half")
    low, full = (
        crf.labels(image, scores, stride=8),
        crf.labels(image, upsample(scores, 90, 121, Placement.stepping(scores.shape[1:], 1 / 8))),
    )
    assert (low == full).mean() > 0.999
