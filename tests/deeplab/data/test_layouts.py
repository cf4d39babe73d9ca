"""Data sets as the field lays them out: which pairs a split has, and what class a label value is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab.classes import CITYSCAPES, VOC
from deeplab.data.datasets import LabelledFolder
from deeplab.data.layouts import DatasetError


def write(root: Path, image: str, labels: str, value: int) -> None:
    """A 4 x 6 image and labels whose first pixel is `value` and whose others are as `other` in VOC's way: 255."""
    for name, pixels in ((image, np.full((4, 6, 3), 90, np.uint8)), (labels, np.full((4, 6), 255, np.uint8))):
        if name == labels:
            pixels[0, 0] = value
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def text(root: Path, name: str, content: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(content)


def voc(root: Path) -> None:
    write(root, "JPEGImages/2007_1.jpg", "SegmentationClass/2007_1.png", 15)
    text(root, "ImageSets/Segmentation/train.txt", "2007_1\n")


def voc_augmented(root: Path) -> None:
    write(root, "JPEGImages/2008_2.jpg", "SegmentationClassAug/2008_2.png", 20)
    text(root, "ImageSets/Segmentation/train.txt", "/JPEGImages/2008_2.jpg /SegmentationClassAug/2008_2.png\n")


def context(root: Path) -> None:
    write(root, "JPEGImages/2008_3.jpg", "SegmentationClassContext/2008_3.png", 59)
    text(root, "ImageSets/SegmentationContext/train.txt", "2008_3\n")
    text(root, "ImageSets/Segmentation/train.txt", "other\n")


def person_part(root: Path) -> None:
    write(root, "JPEGImages/2010_4.jpg", "pascal_person_part_gt/2010_4.png", 6)
    text(root, "pascal_person_part_trainval_list/train.txt", "2010_4\n")


def cityscapes(root: Path) -> None:
    write(root, "leftImg8bit/train/ulm/ulm_0_leftImg8bit.png", "gtFine/train/ulm/ulm_0_gtFine_labelIds.png", 26)


def ade20k(root: Path) -> None:
    write(root, "images/training/ADE_1.jpg", "annotations/training/ADE_1.png", 2)
    labels = np.zeros((4, 6), np.uint8)  # 0 is "other": ignored
    labels[0, 0] = 2
    Image.fromarray(labels).save(root / "annotations/training/ADE_1.png")
    text(
        root,
        "objectInfo150.txt",
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t9\t9\t1\twall\n2\t0.1\t9\t9\t1\tbuilding, edifice\n",
    )


def coco_stuff(root: Path) -> None:
    write(root, "images/train2017/000009.jpg", "annotations/train2017/000009.png", 12)
    text(root, "labels.txt", "0: unlabeled\n1: person\n11: fire hydrant\n12: street sign\n13: stop sign\n")


EXPECTED = {
    voc: ("2007_1", list(VOC.names), 15),
    voc_augmented: ("2008_2", list(VOC.names), 20),
    context: ("2008_3", "wood", 59),
    person_part: ("2010_4", "lower legs", 6),
    cityscapes: ("ulm/ulm_0", list(CITYSCAPES.names), 13),  # labelId 26, car, is trainId 13
    ade20k: ("ADE_1", ["wall", "building, edifice"], 1),
    coco_stuff: ("000009", ["person", "fire hydrant", "stop sign"], 2),
}


@pytest.mark.parametrize("make", EXPECTED, ids=lambda make: make.__name__)
def test_a_layout_is_found_and_its_values_become_class_ids(tmp_path, make):
    make(tmp_path)
    data = LabelledFolder(tmp_path, "train")
    stem, classes, value = EXPECTED[make]
    assert data.stems == [stem]
    assert data.classes == classes if isinstance(classes, list) else data.classes[-1] == classes
    image, labels = data[0]
    assert image.shape == (4, 6, 3)
    assert labels[0, 0] == value
    assert (labels.ravel()[1:] == 255).all()


def test_pascal_context_has_59_classes_and_background(tmp_path):
    context(tmp_path)
    classes = LabelledFolder(tmp_path, "train").classes
    assert len(classes) == 60
    assert classes[1:] == sorted(classes[1:])


def test_the_augmented_list_takes_the_augmented_labels(tmp_path):
    voc(tmp_path)
    text(tmp_path, "ImageSets/Segmentation/trainaug.txt", "2007_1\n")
    with pytest.raises(DatasetError, match="SegmentationClassAug: missing; trainaug needs the SBD labels"):
        LabelledFolder(tmp_path, "trainaug")
    write(tmp_path, "JPEGImages/2007_1.jpg", "SegmentationClassAug/2007_1.png", 3)
    assert LabelledFolder(tmp_path, "trainaug")[0][1][0, 0] == 3


def test_a_label_id_that_cityscapes_does_not_have_is_named(tmp_path):
    write(tmp_path, "leftImg8bit/train/ulm/a_leftImg8bit.png", "gtFine/train/ulm/a_gtFine_labelIds.png", 77)
    with pytest.raises(DatasetError, match=r"a_gtFine_labelIds\.png: value 77; 0\.\.33 and 255 are accepted"):
        LabelledFolder(tmp_path, "train")[0]


def test_a_named_layout_is_taken_and_an_unknown_one_refused(tmp_path):
    voc(tmp_path)
    assert len(LabelledFolder(tmp_path, "train", "voc2012")) == 1
    with pytest.raises(DatasetError, match="layout 'voc': auto, plain, "):
        LabelledFolder(tmp_path, "train", "voc")
    with pytest.raises(DatasetError, match="splits here: train"):
        LabelledFolder(tmp_path, "test")


def test_two_images_for_one_label_file_are_refused_where_folders_are_the_list(tmp_path: Path) -> None:
    ade20k(tmp_path)
    write(tmp_path, "images/training/ADE_1.png", "annotations/training/ADE_1.png", 2)
    with pytest.raises(DatasetError, match=r"images/training: ADE_1\.jpg and ADE_1\.png are two images for one label file"):
        LabelledFolder(tmp_path, "train")
