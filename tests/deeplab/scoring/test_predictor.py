from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deeplab.images.decoding import decode
from deeplab.models import checkpoint
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.settings import Scoring

EXAMPLES = Path(__file__).parents[3] / "examples" / "pets" / "images"
MIXED = [(40, 60), (33, 33), (40, 60), (1, 1), (70, 9), (38, 62), (1, 50)]


def directly(network, image: np.ndarray) -> np.ndarray:
    """Pad with the mean colour at the bottom and right to the lattice, normalise, one forward pass."""
    height, width = (network.lattice_size(side) for side in image.shape[:2])
    canvas = np.full((height, width, 3), 128, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    with torch.no_grad():
        return network(torch.from_numpy(canvas).permute(2, 0, 1)[None] / 127.5 - 1)[0].numpy()


def test_scores_of_mixed_sizes_come_in_order_and_as_from_a_plain_pass(small_network, photo):
    network = small_network()
    images = [photo(*size) for size in MIXED]
    results = Predictor(network, Scoring(precision="float32"), device="cpu").scores(images)
    for image, scores in zip(images, results, strict=True):
        height, width = image.shape[:2]
        assert scores.dtype == np.float16
        assert scores.shape == (3, -(-(height - 1) // 8) + 1, -(-(width - 1) // 8) + 1)
        np.testing.assert_allclose(scores, directly(network, image), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("options", [{}, {"scales": (0.5, 0.75, 1.0), "flip": True}])
def test_a_result_does_not_depend_on_the_company(small_network, photo, options):
    network = small_network()
    images = [photo(*size) for size in MIXED]
    together = Predictor(network, Scoring(**options), device="cpu").scores(images)
    in_pairs = Predictor(network, Scoring(**options), device="cpu", batch_pixels=2 * 41 * 65)
    for index, image in enumerate(images):
        np.testing.assert_allclose(in_pairs.scores([image])[0], together[index], rtol=2e-3, atol=2e-3)
    for ours, theirs in zip(in_pairs.scores(images[::-1]), together[::-1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_masks_of_photos_do_not_depend_on_the_company(precision):
    network = checkpoint.load("pets").network
    photos = [decode(path.read_bytes()) for path in sorted(EXAMPLES.glob("*.jpg"))[:8]]
    alone = Predictor(network, Scoring(precision=precision), device="cpu", batch_pixels=1)
    together = Predictor(network, Scoring(precision=precision), device="cpu", batch_pixels=2_000_000).labels(photos)
    same = sum(int((alone.labels([photo])[0] == labels).sum()) for photo, labels in zip(photos, together, strict=True))
    assert same / sum(labels.size for labels in together) >= 0.999


def test_labels_are_the_largest_score_at_each_pixel(small_network, photo):
    network = small_network()
    image = photo(50, 45)
    labels = Predictor(network, device="cpu").labels([image])[0]
    assert (labels.shape, labels.dtype) == ((50, 45), np.uint8)
    scores = directly(network, image).astype(np.float64)
    rows, columns = np.arange(50) / 8, np.arange(45) / 8
    full = np.stack([
        [np.interp(columns, np.arange(scores.shape[2]), line) for line in
         np.stack([np.interp(rows, np.arange(scores.shape[1]), column) for column in plane.T], 1)]
        for plane in scores
    ])  # fmt: skip
    assert (labels == full.argmax(0)).mean() > 0.995  # scores are rounded to half precision on the way


def test_more_than_256_classes_give_16_bit_labels(small_network, photo):
    network = small_network(classes=300)
    with torch.no_grad():
        network.head.branches[0].bias[290] = 100.0
    labels = Predictor(network, device="cpu").labels([photo(20, 20)])[0]
    assert labels.dtype == np.uint16
    assert (labels == 290).all()


def test_no_images_give_no_results(small_network):
    assert Predictor(small_network(), device="cpu").scores([]) == []


def test_tiles_are_blended_linearly_and_equal_the_whole_image_elsewhere(small_network, photo):
    """193 wide in tiles of 129 with overlap 64: pixels 0..128 and 64..192, grid places 0..16 and 8..24.

    A score sees 31 pixels either side. Places 8..11 of the second tile and 13..16 of the first see its edge; all others
    are the whole image's. Over the places 8..16 the first tile's weight falls 9/9..1/9 while the second's rises.
    """
    network = small_network()
    image = photo(129, 193)
    plain = Predictor(network, device="cpu")
    whole = plain.scores([image])[0].astype(np.float32)
    tiled = Predictor(network, Scoring(tile=129, overlap=64), device="cpu").scores([image])[0].astype(np.float32)
    assert tiled.shape == whole.shape == (3, 17, 25)
    exact = [*range(8), 12, *range(17, 25)]
    np.testing.assert_allclose(tiled[..., exact], whole[..., exact], rtol=2e-3, atol=2e-3)

    first, second = (plain.scores([np.ascontiguousarray(part)])[0].astype(np.float64) for part in (image[:, :129], image[:, 64:]))
    falling = np.arange(9, 0, -1) / 9
    by_hand = (first[..., 8:] * falling + second[..., :9] * falling[::-1]) / (falling + falling[::-1])
    np.testing.assert_allclose(tiled[..., 8:17], by_hand, rtol=2e-3, atol=2e-3)
    assert np.abs(first[..., 16] - whole[..., 16]).max() > 0.05  # what a plain cut would have left there


def test_tiles_and_the_whole_image_agree_on_the_labels(small_network, photo):
    network = small_network()
    images = [photo(300, 420), photo(260, 129)]
    whole = Predictor(network, device="cpu").labels(images)
    tiled = Predictor(network, Scoring(tile=193, overlap=96), device="cpu").labels(images)
    for ours, theirs in zip(tiled, whole, strict=True):
        assert (ours == theirs).mean() >= 0.99


@pytest.mark.parametrize("shape", [(129 + 1, 129 + 8), (1000, 20), (20, 1000), (137, 129), (500, 140)])
def test_tiled_scores_lie_on_the_same_grid(small_network, photo, shape):
    image = photo(*shape)
    tiled = Predictor(small_network(), Scoring(tile=129, overlap=40), device="cpu").scores([image])[0]
    assert tiled.shape == (3, -(-(shape[0] - 1) // 8) + 1, -(-(shape[1] - 1) // 8) + 1)
    assert np.isfinite(tiled).all()


def test_no_pass_is_larger_than_the_tile(small_network, photo):
    network, seen = small_network(), []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    predictor = Predictor(network, Scoring(tile=129, overlap=32), device="cpu", batch_pixels=129 * 129)
    predictor.scores([photo(300, 500)] + [photo(100, 100)] * 3)
    assert max(batch * height * width for batch, _, height, width in seen) <= 129 * 129


def test_flip_makes_the_scores_of_the_mirror_image_the_mirrored_ones(small_network, photo):
    image = photo(65, 97)
    predictor = Predictor(small_network(), Scoring(flip=True), device="cpu")
    straight, mirrored = predictor.scores([image, np.ascontiguousarray(image[:, ::-1])])
    np.testing.assert_allclose(mirrored[..., ::-1], straight, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_changes_scores_little_but_is_used(small_network, photo, precision):
    network, image = small_network(), photo(65, 65)
    exact = Predictor(network, Scoring(precision="float32"), device="cpu").scores([image])[0].astype(np.float32)
    coarse = Predictor(network, Scoring(precision=precision), device="cpu").scores([image])[0].astype(np.float32)
    assert 0 < np.abs(coarse - exact).max() < 0.1 * np.abs(exact).max()


def test_scores_beyond_half_precision_stay_finite(small_network, photo):
    network = small_network()
    with torch.no_grad():
        network.head.branches[0].bias.copy_(torch.tensor([1e6, 0, -1e6]))
    predictor = Predictor(network, device="cpu")
    image = photo(20, 20)
    assert np.isfinite(predictor.scores([image])[0]).all()
    assert not predictor.labels([image])[0].any()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((1, 5, 5, 3), np.uint8),
    ],
    ids=["grey", "four channels", "float", "empty", "batch"],
)
def test_an_array_that_is_no_picture_is_refused(small_network, image):
    with pytest.raises(ValueError, match="H x W x 3 uint8"):
        Predictor(small_network(), device="cpu").scores([image])


@pytest.mark.parametrize(
    "options",
    [
        {"scales": ()},
        {"scales": (0.0,)},
        {"scales": (1e-9,)},
        {"scales": (1.0, float("nan"))},
        {"scales": (5.0,)},
        {"fusion": "median"},
        {"precision": "int4"},
        {"tile": 100, "overlap": 64},
        {"overlap": -8},
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused(small_network, options):
    with pytest.raises(ValueError, match=r"accepted|must exceed"):
        Predictor(small_network(), Scoring(**options))
