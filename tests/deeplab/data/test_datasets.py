from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab.data.datasets import LabelledFolder
from deeplab.data.layouts import DatasetError


def test_a_split_gives_pixels_and_class_ids_in_its_order(labelled_folder):
    root = labelled_folder(4)
    (root / "odd.txt").write_text("picture_2\n\n  picture_0  \n")
    data = LabelledFolder(root, "odd")
    assert data.classes == ["ground", "square"]
    assert data.stems == ["picture_2", "picture_0"]
    assert len(data) == len(list(data)) == 2
    image, labels = data[1]
    np.testing.assert_array_equal(image, np.asarray(Image.open(root / "images" / "picture_0.png")))
    np.testing.assert_array_equal(labels, np.asarray(Image.open(root / "labels" / "picture_0.png")))
    assert set(np.unique(labels)) == {0, 1, 255}


def test_the_shared_pets_are_a_data_set(shared):
    sizes = {split: LabelledFolder(shared / "data" / "pets", split) for split in ("train", "val", "test")}
    assert {split: len(data) for split, data in sizes.items()} == {"train": 270, "val": 30, "test": 298}
    image, labels = sizes["val"][0]
    assert image.shape[:2] == labels.shape
    assert sizes["val"].classes == ["background", "cat", "dog"]


def label_with(root, value: int) -> None:
    labels = np.zeros((41, 41), np.uint8)
    labels[3, 4] = value
    Image.fromarray(labels).save(root / "labels" / "picture_1.png")


def picture(mode: str, size: tuple[int, int]) -> Callable[[Path], None]:
    return lambda root: Image.new(mode, size).save(root / "labels" / "picture_1.png")


def contents(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(data)


def pipe(name):
    def damage(root):
        (root / name).unlink()
        os.mkfifo(root / name)

    return damage


DAMAGE = {
    "a value that is no class": (lambda root: label_with(root, 2), r"labels/picture_1\.png: value 2; 0\.\.1 and 255"),
    "another size": (picture("L", (40, 41)), r"labels/picture_1\.png: labels are \(41, 40\), the image is \(41, 41\)"),
    "labels in colour": (picture("RGB", (41, 41)), r"picture_1\.png.*mode RGB"),
    "no labels": (lambda root: (root / "labels" / "picture_1.png").unlink(), r"labels/picture_1\.png"),
    "labels cut short": (contents("labels/picture_1.png", b"\x89PNG\r\n"), r"labels/picture_1\.png"),
    "a pipe for an image": (pipe("images/picture_1.png"), "images/picture_1.png: .*no regular file"),
    "a broken image": (contents("images/picture_1.png", b"hello"), r"images/picture_1\.png: not an image"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_pair_that_cannot_be_used_is_named(labelled_folder, kind):
    root = labelled_folder(3)
    damage, message = DAMAGE[kind]
    damage(root)
    data = LabelledFolder(root, "train")
    assert data[0][0].shape == (41, 41, 3)
    with pytest.raises(DatasetError, match=message):
        data[1]


SHAPE = {
    "no folder": (lambda root: root.rename(root.with_name("elsewhere")), "no such folder"),
    "no such split": (lambda root: (root / "train.txt").unlink(), r"train\.txt: cannot be read .*splits here: val"),
    "an empty split": (lambda root: (root / "train.txt").write_text("\n\n"), r"train\.txt: lists no images"),
    "no class names": (lambda root: (root / "classes.txt").unlink(), r"classes\.txt: cannot be read"),
    "one class": (lambda root: (root / "classes.txt").write_text("ground\n"), "1 classes; 2 to 255"),
    "too many classes": (lambda root: (root / "classes.txt").write_text("\n".join(map(str, range(256)))), "256 classes"),
    "two equal classes": (lambda root: (root / "classes.txt").write_text("cat\ncat\n"), r"classes\.txt.*cat"),
    "classes that are no text": (lambda root: (root / "classes.txt").write_bytes(b"\xff\xfe\xfa"), r"classes\.txt.*UTF-8"),
    "two images of one stem": (
        lambda root: Image.new("RGB", (41, 41)).save(root / "images" / "picture_1.jpg"),
        r"images: picture_1\.jpg and picture_1\.png are two images for one label file",
    ),
    "a stem without image": (lambda root: (root / "images" / "picture_1.png").unlink(), r"no image for picture_1 \(1 of 3\)"),
}


@pytest.mark.parametrize("kind", SHAPE)
def test_a_folder_of_another_shape_is_refused_at_once(labelled_folder, kind):
    root = labelled_folder(3)
    damage, message = SHAPE[kind]
    damage(root)
    with pytest.raises(DatasetError, match=message) as caught:
        LabelledFolder(root, "train")
    assert re.search(re.escape(str(root)), str(caught.value))


def test_a_second_image_of_a_stem_that_is_not_in_the_split_is_no_matter(labelled_folder):
    root = labelled_folder(3)
    (root / "few.txt").write_text("picture_0\n")
    Image.new("RGB", (41, 41)).save(root / "images" / "picture_1.jpg")
    assert len(LabelledFolder(root, "few")) == 1
