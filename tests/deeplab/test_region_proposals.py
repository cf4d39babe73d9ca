"""Region proposals: what they find, that equal images have equal ones, and what happens where there are none."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

from deeplab import region_proposals
from deeplab.region_proposals import Proposals, ProposalsUnavailable, chosen_boxes, gradient_edges, ranked_boxes

METHODS = ("edge-boxes", "selective-search")


@pytest.fixture
def scene(rng: np.random.Generator) -> np.ndarray:
    """A red rectangle, rows 20 to 140 and columns 30 to 160, on grainy grey."""
    image = rng.integers(87, 93, (160, 200, 3)).astype(np.uint8)
    image[20:140, 30:160] = 200, 60, 60
    return image


@pytest.mark.parametrize("method", METHODS)
def test_an_object_has_a_tight_box_among_the_boxes_and_equal_images_equal_boxes(scene, method):
    boxes = chosen_boxes(scene, Proposals(method))
    left, top, right, bottom = boxes[:25].T
    inner = np.clip(np.minimum(right, 160) - np.maximum(left, 30), 0, None)
    inner *= np.clip(np.minimum(bottom, 140) - np.maximum(top, 20), 0, None)
    assert (inner / ((right - left) * (bottom - top) + 120 * 130 - inner)).max() > 0.9
    assert np.array_equal(boxes, chosen_boxes(scene.copy(), Proposals(method)))


@pytest.mark.parametrize("method", METHODS)
def test_the_first_boxes_of_the_least_side_are_taken_inside_the_image(scene, method):
    scene[145:158, 10:60] = 0
    ranked = ranked_boxes(scene, method, 100)
    assert (ranked[:, :2] >= 0).all() and (ranked[:, 2] <= 200).all() and (ranked[:, 3] <= 160).all() and len(ranked) <= 100
    large = [box for box in ranked.tolist() if min(box[2] - box[0], box[3] - box[1]) >= 60]
    assert 2 < len(large) < len(ranked)
    assert chosen_boxes(scene, Proposals(method, ranked=100, count=2, smallest=60)).tolist() == large[:2]


@pytest.mark.parametrize("shape", [(150, 200), (1, 1), (111, 400), (400, 60)])
@pytest.mark.parametrize("method", METHODS)
def test_an_image_without_edges_or_smaller_than_a_box_is_one_box(rng, shape, method):
    flat = np.full((*shape, 3), 90, np.uint8)
    assert chosen_boxes(flat, Proposals(method)).tolist() == [[0, 0, shape[1], shape[0]]]
    if min(shape) < 112:
        assert len(chosen_boxes(rng.integers(0, 256, (*shape, 3), np.uint8), Proposals(method))) == 1


@pytest.mark.parametrize("method", METHODS)
def test_boxes_of_a_large_image_are_those_of_a_reduced_one(scene, method, monkeypatch):
    monkeypatch.setattr(region_proposals, "LONGEST", 200)
    large = np.kron(scene, np.ones((3, 3, 1), np.uint8))
    assert np.array_equal(ranked_boxes(large, method, 50), 3 * ranked_boxes(scene, method, 50))
    odd = ranked_boxes(large[:-2, :-1], method, 50)  # 478 x 599
    assert odd[:, 2].max() <= 599 and odd[:, 3].max() <= 478 and odd.min() >= 0 and (odd[:, :2] < odd[:, 2:]).all()


def test_edges_are_thin_gradients_by_the_formula(scene):
    """Gaussian of deviation 1 and Sobel / 8 of each channel, in float64 by shifted sums."""
    strength, angle = gradient_edges(scene)
    padded = np.pad(scene.astype(np.float64), ((8, 8), (8, 8), (0, 0)), mode="reflect")
    kernel = np.exp(-(np.arange(-4, 5) ** 2) / 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        padded = sum(weight * np.roll(padded, shift, axis) for weight, shift in zip(kernel, range(-4, 5), strict=True))
    smooth = {(y, x): np.roll(padded, (-y, -x), (0, 1))[10:-10, 10:-10] for y in (-1, 0, 1) for x in (-1, 0, 1)}
    across = sum(w * (smooth[y, 1] - smooth[y, -1]) for y, w in ((-1, 1), (0, 2), (1, 1))) / 8
    down = sum(w * (smooth[1, x] - smooth[-1, x]) for x, w in ((-1, 1), (0, 2), (1, 1))) / 8
    size = np.hypot(across, down).max(2)
    inner = strength[2:-2, 2:-2]
    kept = (inner > 0.5) & (inner < 0.999)
    full = (size[kept] / inner[kept]).mean()
    np.testing.assert_allclose(size[kept], full * inner[kept], rtol=1e-3)
    assert full == pytest.approx(np.percentile(size, 99), rel=0.02)
    assert kept.sum() > 20 and strength.max() == 1
    assert ((strength[30:130, 20:40] > 0.5).sum(1) <= 2).all()  # the left side is thin
    assert abs(np.mod(angle[80, 29:31] + 0.1, np.pi) - 0.1).max() < 0.1  # its normal lies along the row,
    assert (abs(angle[19:21, 90] - np.pi / 2) < 0.1).all()  # that of the upper side along the column
    assert strength[5:14, 5:190].max() < 0.2  # grain is no edge


def test_missing_extra_modules_are_said_with_the_extra_that_brings_them(scene, monkeypatch):
    plain = ModuleType("cv2")
    plain.__version__ = "4.9"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cv2", plain)
    with pytest.raises(ProposalsUnavailable, match=r"4\.9 lacks: pip uninstall .*deeplab-pipelines\[proposals\]"):
        ranked_boxes(scene, "edge-boxes", 10)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ProposalsUnavailable, match=r"opencv-contrib-python-headless: pip install 'deeplab-pipelines\[proposals\]'"):
        ranked_boxes(scene, "edge-boxes", 10)


@pytest.mark.parametrize("values", [{"method": "bing"}, {"paste": "sum"}, {"count": 0}, {"smallest": 1.5}, {"ranked": True}])
def test_values_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match="accepted"):
        Proposals(**values)
