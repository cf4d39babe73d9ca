from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deeplab.classes import IGNORE
from deeplab.data.augmentation import Augmentation

PAD = (127.5, 104.2, 1.0)


@pytest.fixture
def pair(photo, rng):
    image = photo(30, 40)
    # Labels that tell where each came from: class = quarter of the picture.
    labels = (np.arange(30)[:, None] // 15 * 2 + np.arange(40) // 20).astype(np.uint8)
    return image, labels


def test_what_the_crop_has_beyond_the_image_is_mean_colour_and_ignored(pair):
    image, labels = pair
    out, classes = Augmentation(64, (1.0,), PAD, mirror=False)(Image.fromarray(image), labels, np.random.default_rng(0))
    assert (out.shape, out.dtype, classes.shape, classes.dtype) == ((64, 64, 3), np.uint8, (64, 64), np.uint8)
    np.testing.assert_array_equal(out[:30, :40], image)
    np.testing.assert_array_equal(classes[:30, :40], labels)
    outside = np.ones((64, 64), bool)
    outside[:30, :40] = False
    assert (classes[outside] == 255).all()
    assert (np.abs(out[outside] - np.array(PAD)) <= 0.5).all()


def test_a_crop_is_a_piece_of_the_image_with_its_own_labels(pair):
    image, labels = pair
    augment = Augmentation(17, (1.0,), PAD, mirror=False)
    seen = set()
    for seed in range(200):
        out, classes = augment(Image.fromarray(image), labels, np.random.default_rng(seed))
        places = [
            (i, j) for i in range(14) for j in range(24) if np.array_equal(image[i : i + 17, j : j + 17], out)
        ]  # every possible place
        assert places
        assert any(np.array_equal(labels[i : i + 17, j : j + 17], classes) for i, j in places)
        seen.update(places)
    assert {i for i, _ in seen} == set(range(14))  # first and last row included
    assert {j for _, j in seen} == set(range(24))


def test_mirroring_turns_image_and_labels_together(pair):
    image, labels = pair
    augment = Augmentation(40, (1.0,), PAD)
    found = set()
    for seed in range(20):
        out, classes = augment(Image.fromarray(image), labels, np.random.default_rng(seed))
        straight = np.array_equal(out[:30], image)
        assert straight or np.array_equal(out[:30], image[:, ::-1])
        np.testing.assert_array_equal(classes[:30], labels if straight else labels[:, ::-1])
        found.add(straight)
    assert found == {True, False}


def test_scaling_is_bilinear_for_pixels_and_never_makes_new_classes(pair):
    image, labels = pair
    spread = np.where(labels == 3, 20, labels).astype(np.uint8)
    for factor in (0.5, 0.75, 1.5):
        size = round(40 * factor), round(30 * factor)
        out, classes = Augmentation(64, (factor,), PAD, mirror=False)(Image.fromarray(image), spread, np.random.default_rng(0))
        np.testing.assert_array_equal(out[: size[1], : size[0]], Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        assert set(np.unique(classes)) == {0, 1, 2, 20, 255}
        assert (classes != 255).sum() == size[0] * size[1]


def test_every_factor_is_drawn(pair):
    augment = Augmentation(64, (0.5, 1.0, 1.5), PAD)
    pair = Image.fromarray(pair[0]), pair[1]
    sizes = {int((augment(*pair, np.random.default_rng(seed))[1] != 255).sum()) for seed in range(60)}
    assert sizes == {15 * 20, 30 * 40, 45 * 60}


def test_all_chance_comes_from_the_generator(pair):
    augment = Augmentation(33, (0.5, 0.75, 1.0, 1.25, 1.5), PAD, colour=0.3)
    pair = Image.fromarray(pair[0]), pair[1]
    first, second = (augment(*pair, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert any(not np.array_equal(augment(*pair, np.random.default_rng(seed))[0], first[0]) for seed in range(6, 10))


def test_colour_changes_pixels_only_and_only_within_its_range(pair):
    image, labels = np.full((20, 20, 3), 100, np.uint8), np.zeros((20, 20), np.uint8)
    values = []
    for seed in range(40):
        out, classes = Augmentation(20, (1.0,), PAD, colour=0.3)(Image.fromarray(image), labels, np.random.default_rng(seed))
        values.append(int(out[0, 0, 0]))  # of a plain grey, only the brightness can change
        assert not classes.any()
    assert 69 <= min(values) < 85
    assert 115 < max(values) <= 131


def test_the_inputs_are_left_as_they_were(pair):
    image, labels = Image.fromarray(pair[0]), pair[1]
    before = np.array(image), labels.copy()
    for scales in ((0.5, 1.5), (1.0,)):
        crop, classes = Augmentation(33, scales, PAD, colour=0.3)(image, labels, np.random.default_rng(0))
        crop[:], classes[:] = 0, 0
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(labels, before[1])


def plainly(image, labels, rng, crop, factor, colour):
    """The crop as it is defined: the whole image is resized and coloured, then cut, mirrored and padded."""
    height, width = (round(side * factor) for side in labels.shape)
    whole = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)).astype(float)
    rows, columns = ((np.arange(size) + 0.5) / size * side for size, side in ((height, len(image)), (width, image.shape[1])))
    classes = labels[np.ix_(np.floor(rows + 1e-9).astype(int), np.floor(columns + 1e-9).astype(int))]
    assert rng.choice([factor]) == factor
    if colour:
        brightness, contrast, saturation = rng.uniform(1 - colour, 1 + colour, 3)
        whole = (whole * brightness).clip(0, 255)
        mean = (whole @ [0.299, 0.587, 0.114]).mean()
        whole = (mean + contrast * (whole - mean)).clip(0, 255)
        grey = (whole @ [0.299, 0.587, 0.114])[..., None]
        whole = (grey + saturation * (whole - grey)).clip(0, 255)
    top, left = (int(rng.integers(0, max(0, side - crop) + 1)) for side in (height, width))
    part, classes = (array[top : top + crop, left : left + crop] for array in (whole, classes))
    if rng.random() < 0.5:
        part, classes = part[:, ::-1], classes[:, ::-1]
    out, ids = np.empty((crop, crop, 3)), np.full((crop, crop), IGNORE)
    out[:] = np.round(PAD)
    out[: part.shape[0], : part.shape[1]], ids[: part.shape[0], : part.shape[1]] = part, classes
    return out, ids


@pytest.mark.parametrize("colour", [0.0, 0.3])
@pytest.mark.parametrize("factor", [0.5, 0.75, 1.0, 1.25, 1.5])
def test_a_crop_is_what_scaling_and_colouring_the_whole_image_gives(photo, rng, factor, colour):
    """Only the crop's part is computed; its source window, the mean grey and the rounding must not show."""
    augment = Augmentation(61, (factor,), PAD, colour=colour)
    for height, width in ((120, 161), (97, 83), (50, 200), (40, 31)):
        image, labels = photo(height, width), rng.integers(0, 5, (height, width)).astype(np.uint8)
        for seed in range(6):
            expected, ids = plainly(image, labels, np.random.default_rng(seed), 61, factor, colour)
            out, classes = augment(Image.fromarray(image), labels, np.random.default_rng(seed))
            np.testing.assert_array_equal(classes, ids)
            apart = np.abs(out - expected)
            # Each of the two passes of scaling may round otherwise, and each colour change by 1.3 enlarges that.
            assert apart.max() <= (5 if colour else 2) and apart.mean() < (0.6 if colour else 0.3)


def test_class_crops_show_a_rare_class_as_often_as_a_common_one():
    labels = np.zeros((200, 240), np.uint8)
    labels[150:153, 7:10] = 1  # nine pixels of 48,000
    labels[:20] = IGNORE
    image = np.repeat(labels[..., None] * 90, 3, 2)

    def shown(share, scales):
        augment = Augmentation(40, scales, PAD, class_crops=share)
        crops = [augment(Image.fromarray(image), labels, np.random.default_rng(n))[1] for n in range(200)]
        return np.mean([(crop == 1).any() for crop in crops])

    assert shown(1.0, (1.0,)) == pytest.approx(0.5, abs=0.1)
    assert shown(1.0, (0.5, 1.5)) == pytest.approx(0.5, abs=0.1)
    assert shown(0.5, (1.0,)) == pytest.approx(0.25, abs=0.1)
    assert shown(0.0, (1.0,)) < 0.05


def test_class_crops_of_an_image_without_labels_or_smaller_than_the_crop_are_plain_ones():
    augment = Augmentation(40, (1.0,), PAD, mirror=False, class_crops=1.0)
    image = np.zeros((30, 60, 3), np.uint8)
    for labels in (np.full((30, 60), IGNORE, np.uint8), np.zeros((30, 60), np.uint8)):
        _, crop = augment(Image.fromarray(image), labels, np.random.default_rng(0))
        assert crop.shape == (40, 40)
        assert (crop[:30] == labels[0, 0]).all()
        assert (crop[30:] == IGNORE).all()
