from __future__ import annotations

import pytest

from deeplab.classes import CITYSCAPES, PETS, VOC, ClassTable, voc_colour


def test_all_256_voc_colours_follow_the_published_rule():
    """The development kit's VOClabelcolormap: bit 3k of the id is bit 7-k of red, 3k+1 of green, 3k+2 of blue."""
    for index in range(256):
        bits = f"{index:024b}"[::-1]
        expected = tuple(sum(int(bits[3 * k + channel]) * 2 ** (7 - k) for k in range(8)) for channel in range(3))
        assert voc_colour(index) == expected
    assert len({voc_colour(index) for index in range(256)}) == 256


def test_voc_has_the_colours_that_its_labels_have():
    known = {"background": (0, 0, 0), "aeroplane": (128, 0, 0), "bicycle": (0, 128, 0), "bird": (128, 128, 0), "boat": (0, 0, 128),
             "cat": (64, 0, 0), "dog": (64, 0, 128), "person": (192, 128, 128), "tvmonitor": (0, 64, 128)}  # fmt: skip
    for name, colour in known.items():
        assert VOC.colours[VOC.names.index(name)] == colour
    assert len(VOC) == 21
    assert voc_colour(255) == (224, 224, 192)  # the void border in VOC's label pictures


def test_pets_have_the_colours_of_their_labels(shared):
    from PIL import Image

    label = Image.open(next((shared / "data" / "pets" / "labels").glob("*.png")))
    assert label.getpalette()[:9] == [value for colour in PETS.colours for value in colour]


def test_cityscapes_has_its_nineteen_training_classes():
    assert len(CITYSCAPES) == 19
    assert CITYSCAPES.colours[CITYSCAPES.names.index("car")] == (0, 0, 142)
    assert CITYSCAPES.names[0] == "road"
    assert CITYSCAPES.names[18] == "bicycle"


def test_a_palette_has_768_numbers_and_starts_with_the_classes():
    palette = CITYSCAPES.palette()
    assert len(palette) == 768
    assert palette[:6] == [128, 64, 128, 244, 35, 232]
    assert tuple(palette[-3:]) == voc_colour(255)
    assert len(ClassTable.from_names([f"class {index}" for index in range(300)]).palette()) == 768


def test_a_table_with_two_equal_names_or_a_missing_colour_is_refused():
    with pytest.raises(ValueError, match="differ"):
        ClassTable.from_names(["cat", "dog", "cat"])
    with pytest.raises(ValueError, match="2 class names and 1 colours"):
        ClassTable(("cat", "dog"), ((0, 0, 0),))
    for colour in ((0, 0), (0, 0, 256), (0, 0, -1), (0.5, 0, 0)):
        with pytest.raises(ValueError, match=r"colour .* of class dog"):
            ClassTable(("cat", "dog"), ((0, 0, 0), colour))  # type: ignore[arg-type]
