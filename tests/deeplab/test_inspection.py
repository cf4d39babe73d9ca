"""A data set looked at before it is trained on."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deeplab.datasets import DatasetError, LabelledFolder
from deeplab.inspection import inspect


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
