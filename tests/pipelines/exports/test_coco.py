"""COCO exports, read back by pycocotools and by a decoder of panoptic ids of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from deeplab.classes import CITYSCAPES, ClassTable
from tests.pipelines.exports.exported import LAND, make_table, regions, written

# pycocotools' own arrays still speak numpy 1's protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")


def images(folder: Path, classes: int) -> dict[Path, np.ndarray]:
    return {folder / "photos" / name: regions(40, 53, classes, seed) for seed, name in enumerate(("a/x.jpg", "a/x.png", "b/y.jpg"))}


def test_panoptic_segments_decode_to_the_same_masks(tmp_path: Path) -> None:
    of = images(tmp_path, 3)
    done = written(make_table(tmp_path / "results", of), tmp_path / "out", "coco-panoptic")
    assert (done.files, done.images, done.left_out) == (4, 3, 0)
    document = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [(c["id"], c["name"], c["isthing"], tuple(c["color"])) for c in document["categories"]] == [
        (index, LAND.names[index], 0, LAND.colours[index]) for index in (1, 2)
    ]
    named = {image["id"]: image for image in document["images"]}
    assert len(document["annotations"]) == len({a["file_name"] for a in document["annotations"]}) == 3
    for annotation in document["annotations"]:
        image = named[annotation["image_id"]]
        labels = of[tmp_path / "photos" / image["file_name"]]
        assert (image["height"], image["width"]) == labels.shape
        with Image.open(tmp_path / "out" / "panoptic" / annotation["file_name"]) as file:
            assert file.mode == "RGB"
            pixels = np.array(file, np.uint32)
        ids = pixels[..., 0] + 256 * pixels[..., 1] + 256**2 * pixels[..., 2]
        seen = np.zeros(labels.shape, int)
        for segment in annotation["segments_info"]:
            left, top, width, height = segment["bbox"]
            box = ids[top : top + height, left : left + width] == segment["id"]
            assert box.sum() == (ids == segment["id"]).sum() == segment["area"]
            assert box[0].any() and box[-1].any() and box[:, 0].any() and box[:, -1].any()
            seen[ids == segment["id"]] = segment["category_id"]
        np.testing.assert_array_equal(seen, labels)


def test_panoptic_ids_go_beyond_a_byte(tmp_path: Path) -> None:
    labels = np.array([[0, 255, 256], [300, 300, 0]], np.uint16)
    classes = ClassTable.from_names([f"class {index}" for index in range(301)])
    written(make_table(tmp_path / "results", {tmp_path / "photos/a.png": labels}, classes), tmp_path / "out", "coco-panoptic")
    pixels = np.array(Image.open(tmp_path / "out" / "panoptic" / "a.png"), int)
    np.testing.assert_array_equal(pixels @ [1, 256, 65536] - 1, labels)  # no class 0 that is a background, so ids begin at 1


def test_rle_holds_class_0_where_it_is_no_background(tmp_path: Path) -> None:
    labels = regions(40, 53, len(CITYSCAPES))
    table = make_table(tmp_path / "results", {tmp_path / "photos/a.png": labels}, CITYSCAPES)
    assert written(table, tmp_path / "out", "coco-rle").images == 1
    read = COCO(str(tmp_path / "out" / "coco.json"))
    seen = np.full(labels.shape, 255)
    for annotation in read.loadAnns(read.getAnnIds(imgIds=[1])):
        seen[read.annToMask(annotation) == 1] = annotation["category_id"] - 1
    np.testing.assert_array_equal(seen, labels)
    assert [read.loadCats([index])[0]["name"] for index in (1, 19)] == ["road", "bicycle"]
