from __future__ import annotations

import sys

import numpy as np
import pytest

from deeplab.data.object_crops import ObjectCrops, cut, enlarged, jittered, overlap, proposed
from deeplab.region_proposals import ProposalsUnavailable, ranked_boxes


@pytest.fixture
def scene() -> tuple[np.ndarray, np.ndarray]:
    """Two objects, of class 1 at the left and class 2 at the right, whose pixels say what they are."""
    labels = np.zeros((100, 200), np.uint8)
    labels[20:60, 30:80], labels[40:90, 120:180], labels[0:5] = 1, 2, 255
    grey = np.where(labels == 255, 0, labels.astype(int) * 40).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 2), labels


def test_the_first_stage_shows_one_object_and_keeps_its_class_alone(scene, rng):
    crops = ObjectCrops(56, "objects", (9, 9, 9), mirror=False)
    seen = set()
    for _ in range(20):
        image, labels = crops(*scene, rng)
        assert (image.shape, labels.shape) == ((56, 56, 3), (56, 56))
        found = set(np.unique(labels).tolist()) - {0, 255}
        assert len(found) == 1
        seen |= found
        assert 0.4 < np.isin(labels, list(found)).mean() <= 1  # 1 / 1.2 squared is 0.69 of the whole box
    assert seen == {1, 2}


def test_the_second_stage_keeps_every_label(rng):
    labels = np.ones((60, 60), np.uint8)
    labels[:, 30:] = 2
    crops = ObjectCrops(56, "proposals", (0, 0, 0))
    assert any({1, 2} <= set(np.unique(crops(np.zeros((60, 60, 3), np.uint8), labels, rng)[1]).tolist()) for _ in range(10))


def test_second_stage_boxes_are_edge_boxes_that_overlap_the_object_by_half(rng):
    image = np.full((160, 200, 3), 90, np.uint8)
    image[20:140, 30:160] = 200, 60, 60
    box = (30, 20, 160, 140)
    near = {tuple(other) for other in ranked_boxes(image, "edge-boxes", 2000).tolist() if overlap(tuple(other), box) >= 0.5}
    drawn = {proposed(image, box, rng) for _ in range(20)}
    assert len(drawn) > 1 and drawn <= near
    assert overlap(proposed(image[:90], (0, 60, 20, 80), rng), (0, 60, 20, 80)) >= 0.5  # none is near: a box at random


def test_the_second_stage_without_opencv_is_refused_before_it_starts(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ProposalsUnavailable, match=r"deeplab-pipelines\[proposals\]"):
        ObjectCrops(56, "proposals", (0, 0, 0))
    ObjectCrops(56, "objects", (0, 0, 0))


def test_random_boxes_overlap_the_object_by_half(rng):
    box = (10, 20, 60, 50)
    moved = [jittered(box, rng) for _ in range(200)]
    assert min(overlap(box, other) for other in moved) >= 0.5
    assert len(set(moved)) > 100


def test_overlap_and_enlargement_by_hand():
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert overlap((0, 0, 4, 4), (4, 0, 8, 4)) == 0
    assert enlarged((10, 20, 60, 50), 1.2) == (5, 17, 65, 53)


def test_beyond_the_photo_lies_the_padding(scene):
    part = cut(scene[1], (-3, -2, 5, 4), 7)
    assert part.shape == (6, 8)
    assert (part[:2] == 7).all()
    assert (part[:, :3] == 7).all()
    assert (part[2:, 3:] == scene[1][:4, :5]).all()


def test_image_and_labels_are_cut_and_mirrored_together(scene, rng):
    for _ in range(10):
        image, labels = ObjectCrops(48, "proposals", (0, 0, 0))(*scene, rng)
        inside = (labels != 255) & np.isin(image[..., 0], (0, 40, 80))  # away from blended edges
        assert (image[..., 0][inside] == labels[inside] * 40).mean() > 0.97


def test_a_photo_of_nothing_gives_itself_and_the_same_chance_gives_the_same_crop():
    image, labels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8), np.zeros((40, 50), np.uint8)
    crops = ObjectCrops(32, "objects", (0, 0, 0))
    one, other = (crops(image, labels, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(one[0], other[0])
    assert not one[1].any()
