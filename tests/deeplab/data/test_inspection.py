"""A data set looked at before it is trained on."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deeplab.data.datasets import LabelledFolder
from deeplab.data.inspection import inspect
from deeplab.data.layouts import DatasetError


def test_pixels_sizes_and_broken_pairs_are_counted(labelled_folder):
    root = labelled_folder(4)
    (root / "images" / "picture_1.png").write_bytes(b"no image")
    Image.fromarray(np.full((41, 41), 7, np.uint8)).save(root / "labels" / "picture_3.png")
    data = LabelledFolder(root, "train")
    found = inspect(data, threads=2)
    sound = np.concatenate([data[index][1].ravel() for index in (0, 2)])
    assert found.pixels.tolist() == [(sound == 0).sum(), (sound == 1).sum(), (sound == 255).sum()]
    assert found.images.tolist() == [2, 2, 2]
    assert found.sizes == {(41, 41): 2}
    assert list(found.broken) == ["picture_1", "picture_3"]
    assert found.shares()["square"] == pytest.approx((sound == 1).sum() / (sound != 255).sum())
    with pytest.raises(
        DatasetError, match=r"2 of 4 pairs of train are broken: .*picture_1\.png: not an image.*value 7.*--skip-broken"
    ):
        found.require_usable(skip_broken=False)
    found.require_usable(skip_broken=True)
    left = data.without(list(found.broken))
    assert left.stems == ["picture_0", "picture_2"]
    np.testing.assert_array_equal(left[1][1], data[2][1])
    with pytest.raises(DatasetError, match="every pair of train is broken"):
        data.without(data.stems)


@pytest.mark.parametrize(("value", "message"), [(1, "one class only, square"), (255, "no class")])
def test_labels_of_fewer_than_two_classes_are_refused(labelled_folder, value, message):
    root = labelled_folder(2)
    for path in (root / "labels").iterdir():
        Image.fromarray(np.full((41, 41), value, np.uint8)).save(path)
    with pytest.raises(DatasetError, match=f"{message}: at least two of ground, square"):
        inspect(LabelledFolder(root, "train"), threads=1).require_usable(skip_broken=True)


def turned_photo(root, stem: str, orientation: int, stored: tuple[int, int], labels: tuple[int, int]) -> None:
    """A photo of `stored` (height, width) that is to be turned, and labels of another size or the same."""
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.zeros((*stored, 3), np.uint8)).save(root / "images" / f"{stem}.png", exif=exif)
    Image.fromarray(np.zeros(labels, np.uint8)).save(root / "labels" / f"{stem}.png")


def test_labels_of_a_photo_that_exif_turns_are_told_from_those_that_may_lie_wrong(labelled_folder):
    root = labelled_folder(6)
    cases = {
        "picture_0": (6, (20, 30), (30, 20)),  # drawn on the upright photo
        "picture_1": (6, (20, 30), (20, 30)),  # drawn on the stored pixels
        "picture_2": (6, (20, 20), (20, 20)),  # square: either
        "picture_3": (3, (20, 30), (20, 30)),  # upside down: either
        "picture_4": (1, (20, 30), (20, 30)),
    }
    for stem, (orientation, stored, labels) in cases.items():
        turned_photo(root, stem, orientation, stored, labels)
    found = inspect(LabelledFolder(root, "train"), threads=1)
    assert list(found.broken) == ["picture_1"]
    assert "EXIF orientation 6" in found.broken["picture_1"] and "turn the labels" in found.broken["picture_1"]
    assert list(found.doubtful) == ["picture_2", "picture_3"]
    assert found.doubtful["picture_3"].startswith("picture_3: the image is turned by its EXIF orientation 3")
