from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pycocotools import mask as coco

from deeplab import masks
from deeplab.classes import PETS, VOC, ClassTable
from deeplab.contact_sheet import contact_sheet
from tests.examples import examples

# pycocotools' own arrays still speak numpy 1's protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
SHAPES = array_shapes(min_dims=2, max_dims=2, max_side=20)
MANY = ClassTable.from_names([f"class {index}" for index in range(1000)])


@settings(max_examples=examples(40))
@given(arrays(np.uint8, SHAPES, elements=st.integers(0, 20)))
def test_a_mask_survives_its_png(labels):
    data = masks.encode_png(labels, VOC)
    back = masks.decode_png(data)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, labels)


@settings(max_examples=examples(20))
@given(arrays(np.uint16, SHAPES, elements=st.integers(0, 999)))
def test_a_mask_of_a_thousand_classes_survives_its_png(labels):
    back = masks.decode_png(masks.encode_png(labels, MANY))
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, labels)


def test_a_masks_png_shows_the_classes_in_their_colours():
    labels = np.array([[0, 1, 2]], np.uint8)
    picture = Image.open(io.BytesIO(masks.encode_png(labels, PETS)))
    assert (picture.format, picture.mode) == ("PNG", "P")
    assert [picture.convert("RGB").getpixel((x, 0)) for x in range(3)] == list(PETS.colours)


def test_all_256_ids_survive_an_8_bit_png():
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    data = masks.encode_png(labels, ClassTable.from_names([str(index) for index in range(256)]))
    assert Image.open(io.BytesIO(data)).mode == "P"
    np.testing.assert_array_equal(masks.decode_png(data), labels)


def test_class_pixels_name_the_classes_that_are_there():
    labels = np.zeros((4, 5), np.uint8)
    labels[1, :3] = 2
    assert masks.class_pixels(labels, PETS) == {"background": 17, "dog": 3}


@settings(max_examples=examples(40))
@given(arrays(np.uint8, SHAPES, elements=st.integers(0, 4)))
def test_coco_rle_holds_each_class_exactly(labels):
    annotations = masks.coco_annotations(labels, 42)
    assert [entry["category_id"] for entry in annotations] == sorted(set(labels.ravel().tolist()) - {0})
    for entry in annotations:
        region = labels == entry["category_id"]
        np.testing.assert_array_equal(coco.decode(entry["segmentation"]), region)
        rows, columns = np.nonzero(region)
        left, top = columns.min(), rows.min()
        assert entry["bbox"] == [left, top, columns.max() - left + 1, rows.max() - top + 1]
        assert entry["area"] == region.sum()
        assert entry["image_id"] == 42


def test_coco_rle_of_16_bit_masks():
    labels = np.array([[0, 700], [700, 700]], np.uint16)
    [entry] = masks.coco_annotations(labels, 1)
    assert entry["category_id"] == 700
    np.testing.assert_array_equal(coco.decode(entry["segmentation"]), labels == 700)


def test_an_overlay_leaves_the_background_and_tints_the_classes():
    image = np.full((9, 9, 3), 100, np.uint8)
    labels = np.zeros((9, 9), np.uint8)
    labels[3:, 3:] = 1
    result = masks.overlay(image, labels, PETS, opacity=0.5)
    assert (result.shape, result.dtype) == (image.shape, np.uint8)
    np.testing.assert_array_equal(result[:3], image[:3])
    np.testing.assert_array_equal(result[6, 6], (177, 50, 50))  # half of the photo, half of the class's bright red
    np.testing.assert_array_equal(result[3, 5], (255, 255, 255))  # the outline
    assert (image == 100).all()


def test_colours_on_pictures_differ_where_vocs_differ_in_strength_alone() -> None:
    for classes in (VOC, PETS, ClassTable.from_names([f"class {index}" for index in range(60)])):
        shown = classes.display_colours
        assert len(set(shown)) == len(shown) == len(classes)
        assert all(max(colour) >= 127 for colour in shown[1:])


def test_a_contact_sheet_shows_each_photo_beside_its_overlay(photo):
    labels = np.zeros((60, 80), np.uint8)
    labels[20:, 20:] = 2
    red = np.full((60, 80, 3), (200, 0, 0), np.uint8)
    entries = [("first.jpg", red, np.zeros_like(labels)), ("second.jpg", red, labels)]
    sheet = np.asarray(contact_sheet(entries, PETS, "Pets", 2))
    is_red = (sheet == (200, 0, 0)).all(-1)
    assert is_red.sum() >= 3 * 60 * 80  # two photos, one overlay without a class, and the rest of the other
    tinted = ((sheet[..., 2] > 100) & (sheet[..., 0] > 100) & (sheet[..., 1] < 60)).sum()
    assert tinted > 30 * 50  # dog: bright violet over red
    legend = sheet[:44]
    assert (legend == (127, 0, 255)).all(-1).sum() > 50  # dog's bright colour
    assert not (legend == (255, 0, 0)).all(-1).any()  # no cat is on the sheet


@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_contact_sheet_has_room_for_every_entry_of_any_shape(photo, count):
    shapes = [(60, 80), (500, 20), (1, 300), (700, 900), (1, 1), (30, 30), (5, 5)][:count]
    entries = [("a very long name " * 20, photo(*shape), np.ones(shape, np.uint8)) for shape in shapes]
    one, sheet = (contact_sheet(some, VOC, "Title") for some in (entries[:1], entries))
    assert sheet.height >= one.height
    assert sheet.width == min(count, 3) * (one.width - 12) + 12
    assert np.asarray(sheet).std() > 1
