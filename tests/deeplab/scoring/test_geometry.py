"""Imported models score as their authors' code does. The references are plain F.interpolate calls around the same layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn import functional as F

from deeplab.crf import DenseCRF
from deeplab.models import checkpoint
from deeplab.models.checkpoint import ModelError
from deeplab.networks import resnet as resnet_module
from deeplab.networks.deeplab_heads import ASPP
from deeplab.networks.network import DEEPLAB, SegmentationNetwork
from deeplab.placement import Axis, Geometry, Placement
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.settings import Scoring
from deeplab.weights import import_state_dict
from deeplab.weights.foreign_networks import OFFICIAL, OWN_SIZE
from deeplab.zoo import build
from tests.deeplab.weights.test_imports import kazuto_names, layout

SIZES = [(321, 321), (375, 500), (513, 513), (320, 481)]
MSC = (0.5, 0.75, 1.0)
EXACT = Scoring(scales=MSC, precision="float32")


class NarrowResNet(nn.Module):
    """The sizes of DeepLab's ResNet with a few channels: 7x7 / 2, pool 3x3 / 2, 1x1 / 2, a dilated 3x3."""

    output_stride = 8
    channels = 12

    def __init__(self, ceil_pool: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=ceil_pool)
        self.conv2 = nn.Conv2d(8, 12, 1, 2)
        self.conv3 = nn.Conv2d(12, 12, 3, 1, 2, 2)

    def layers(self) -> list[nn.Module]:
        return [self.conv1, self.bn1, self.conv2, self.conv3]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv2(self.pool(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.conv3(F.relu(x)))


@pytest.fixture(scope="module")
def narrow() -> Callable[[Geometry], SegmentationNetwork]:
    """A network of that geometry whose scores are of the order of one."""

    def make(geometry: Geometry, ceil_pool: bool = True, rates: tuple[int, ...] = (6, 12, 18, 24)) -> SegmentationNetwork:
        torch.manual_seed(0)
        network = SegmentationNetwork(NarrowResNet(ceil_pool), ASPP(12, 4, rates), 4, DEEPLAB).eval()
        with torch.no_grad():
            for name, module in network.named_modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
                    module.weight.div_(60 if name == "backbone.conv1" else 1)
        network.geometry = geometry
        return network

    return make


@pytest.fixture(scope="module")
def image() -> Callable[[int, int], np.ndarray]:
    """(height, width) -> shapes of every size with grain: H x W x 3 uint8."""

    def make(height: int, width: int) -> np.ndarray:
        random = np.random.default_rng(height)
        layers = [
            np.asarray(Image.fromarray(random.integers(0, 256, (n, n + 1, 3), np.uint8)).resize((width, height)), np.float32)
            for n in (3, 9, 40)
        ]
        return np.clip(sum(layers) / 3 + random.normal(0, 10, (height, width, 3)), 0, 255).astype(np.uint8)

    return make


def mean_subtracted(image: np.ndarray) -> torch.Tensor:
    """BGR minus DeepLab's mean, 1 x 3 x H x W, as kazuto's and isht7's evaluations make it."""
    bgr = image[:, :, ::-1].astype(np.float32) - np.array([104.008, 116.669, 122.675], np.float32)
    return torch.from_numpy(np.ascontiguousarray(bgr.transpose(2, 0, 1)))[None]


@torch.no_grad()
def kazuto_msc(network: nn.Module, image: np.ndarray) -> torch.Tensor:
    """kazuto1011's MSC: scale 1, then 0.5 and 0.75 by `scale_factor`, on scale 1's grid, the maximum."""
    x = mean_subtracted(image)
    logits = network(x)
    all_logits = [logits]
    for p in (0.5, 0.75):
        scaled = network(F.interpolate(x, scale_factor=p, mode="bilinear", align_corners=False))
        all_logits.append(F.interpolate(scaled, logits.shape[-2:], mode="bilinear", align_corners=False))
    return torch.stack(all_logits).amax(0)


@torch.no_grad()
def official_msc(network: nn.Module, image: np.ndarray) -> torch.Tensor:
    """The official prototxts and isht7: padded to 513 with zeros, (n - 1) s + 1 with aligned corners, the maximum."""
    x = mean_subtracted(image)
    x = F.pad(x, (0, 513 - x.shape[3], 0, 513 - x.shape[2]))
    logits = network(x)
    all_logits = [logits]
    for side in (257, 385):
        scaled = network(F.interpolate(x, (side, side), mode="bilinear", align_corners=True))
        all_logits.append(F.interpolate(scaled, logits.shape[-2:], mode="bilinear", align_corners=True))
    return torch.stack(all_logits).amax(0)


def on_image(logits: torch.Tensor, image: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Their last resize: C x H x W."""
    height, width = image.shape[:2]
    if geometry == OFFICIAL:
        return F.interpolate(logits, (513, 513), mode="bilinear", align_corners=True)[0, :, :height, :width].numpy()
    return F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)[0].numpy()


FAMILIES = pytest.mark.parametrize(
    ("geometry", "reference"), [(OWN_SIZE, kazuto_msc), (OFFICIAL, official_msc)], ids=["kazuto", "official and isht7"]
)


def assert_labels(ours: np.ndarray, scores: np.ndarray, rounding: float = 4e-3) -> None:
    """The labels of the largest of C x H x W scores, wherever these differ by more than half precision rounds."""
    first, second = np.sort(scores, 0)[:-3:-1]
    decided = first - second > rounding
    assert decided.mean() > 0.98
    np.testing.assert_array_equal(ours[decided], scores.argmax(0)[decided])


@pytest.mark.parametrize("size", SIZES)
@FAMILIES
def test_scores_labels_and_the_crfs_input_are_those_of_the_authors_code(narrow, image, geometry, reference, size):
    network, photo = narrow(geometry), image(*size)
    predictor = Predictor(network, EXACT, device="cpu", score_dtype=torch.float32)
    scores = predictor.scores([photo])[0]
    theirs = reference(network, photo)
    rows, columns = scores.shape[1:]
    np.testing.assert_allclose(scores, theirs[0, :, :rows, :columns], rtol=0, atol=1e-4)
    assert 0.3 < scores.std() < 30
    full = on_image(theirs, photo, geometry)
    assert_labels(predictor.labels([photo])[0], full)
    placement = predictor.placement(scores, *size)
    softmax = torch.from_numpy(full).softmax(0).numpy()
    marginals = DenseCRF("exact", iterations=0).marginals(photo, scores, placement=placement)
    np.testing.assert_allclose(marginals, softmax, rtol=0, atol=1e-4)


def test_other_geometries_give_other_scores(narrow, image):
    photo = image(321, 321)
    own, official, ours = (Predictor(narrow(g), EXACT, device="cpu").labels([photo])[0] for g in (OWN_SIZE, OFFICIAL, Geometry()))
    assert (own != ours).mean() > 0.01
    assert (official != ours).mean() > 0.005


@torch.no_grad()
@pytest.mark.parametrize(("name", "sizes"), [("deeplabv3_mobilenet_v3_large", SIZES), ("deeplabv3_resnet50", [(100, 141)])])
def test_torchvisions_models_give_torchvisions_output(name, sizes, image, randomised):
    theirs = randomised(getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None, num_classes=3))
    network = import_state_dict(theirs.state_dict(), "torchvision")
    predictor = Predictor(network, Scoring(precision="float32"), device="cpu", score_dtype=torch.float32)
    preset = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for size in sizes:
        photo = image(*size)
        expected = theirs(preset(torchvision.transforms.functional.to_tensor(photo))[None])["out"][0].numpy()
        scores = predictor.scores([photo])[0]
        found = predictor.upsampled(scores, *size)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-4)
        assert_labels(predictor.labels([photo])[0], expected / scale)


def card_of(network: SegmentationNetwork, architecture: str, **options: object) -> dict[str, object]:
    classes = [{"name": f"class {i}", "colour": [i, i, i]} for i in range(network.classes)]
    geometry = asdict(network.geometry)
    return {"name": "m", "architecture": {"name": architecture, "options": options}, "classes": classes, "geometry": geometry}


def test_an_imported_kazuto_scores_so_from_its_folder(tmp_path: Path, image, monkeypatch):
    """A ResNet of their layout with a block a stage, through the import, a saved folder and its card."""
    monkeypatch.setitem(resnet_module.BLOCKS, 101, (1, 1, 1, 1))
    weights = {key: value for key, value in layout(kazuto_names, "base.aspp.c", 4).items() if ".layer3.block2." not in key}
    weights = {key: value / 60 if key.endswith("layer1.conv1.conv.weight") else value for key, value in weights.items()}
    imported = import_state_dict(weights, "kazuto")
    checkpoint.save(tmp_path / "m", imported, card_of(imported, "resnet101-aspp", mean="deeplab"), half=False)
    network = checkpoint.load(tmp_path / "m").network
    assert network.geometry == OWN_SIZE
    photo = image(123, 150)
    scores = Predictor(network, EXACT, device="cpu", score_dtype=torch.float32).scores([photo])[0]
    theirs = kazuto_msc(imported, photo)[0].numpy()
    np.testing.assert_allclose(scores / theirs.std(), theirs / theirs.std(), rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "make",
    [
        lambda narrow: narrow(OWN_SIZE),
        lambda narrow: narrow(OWN_SIZE, ceil_pool=False),
        lambda narrow: build("vgg16-largefov", 3, width=0.02).eval(),
        lambda narrow: build("mobilenet-v3-aspp-v3", 3).eval(),
        lambda narrow: build("mobilenet-v2-aspp", 3).eval(),
    ],
    ids=["ceil", "floor", "vgg", "v3", "v2"],
)
def test_a_small_image_tells_how_many_scores_a_large_one_has(make, narrow):
    network = make(narrow)
    network.geometry = OWN_SIZE
    for size in [(1, 1), (7, 300), (99, 88), (64, 65), (127, 130)]:
        x = torch.zeros(1, 3, *size)
        assert network.grid(*size, x) == network(x).shape[-2:], size


@pytest.mark.parametrize("size", [(400, 150), (257, 263), (140, 1000)])
@pytest.mark.parametrize("geometry", [OWN_SIZE, Geometry(least_side=129, exact_mean=True)], ids=["own size", "least side"])
def test_tiles_make_up_the_grid_of_the_whole_image(narrow, image, geometry, size):
    network, photo = narrow(geometry, rates=(1, 2)), image(*size)
    whole = Predictor(network, Scoring(precision="float32"), device="cpu", score_dtype=torch.float32).scores([photo])[0]
    tiled = Predictor(network, Scoring(precision="float32", tile=129, overlap=64), device="cpu", score_dtype=torch.float32)
    scores = np.concatenate(list(tiled.score_rows(photo)), axis=1)
    assert scores.shape == whole.shape
    same = tiled.labels_of(scores, *size) == tiled.labels_of(whole, *size)
    assert same.mean() > 0.975  # 0.966 or less if one is shifted by a score


def test_scales_without_one_lie_on_the_same_grid(narrow, image):
    network, photo = narrow(OWN_SIZE), image(101, 150)
    one = Predictor(network, device="cpu").scores([photo])[0]
    half = Predictor(network, Scoring(scales=(0.5,)), device="cpu").scores([photo])[0]
    assert half.shape == one.shape
    assert Predictor(network, Scoring(scales=(0.5,)), device="cpu").labels([photo[:1, :1]])[0].shape == (1, 1)


@pytest.mark.parametrize("axis", [Axis.stepping(14, 0.125, True), Axis.stepping(14, 0.125, False), Axis.resized(13, 101, False)])
def test_a_window_of_an_axis_reads_what_the_whole_reads(axis):
    low, weight = axis.places(101)
    for start, stop in [(0, 101), (0, 1), (40, 59), (96, 101), (100, 101)]:
        values, window = axis.window(start, stop)
        inner_low, inner_weight = window.places(stop - start)
        assert values.start >= 0
        assert values.stop <= axis.count
        whole = (low + weight)[start:stop]
        np.testing.assert_allclose(inner_low + inner_weight + values.start, whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("mode", ["fast", "half"])
def test_the_crf_reads_scores_where_they_lie_on_any_grid(image, rng, mode):
    """Axes with steps of their own: the native engine's without pruning against torch's, whose reading is tested apart."""
    photo, scores = image(45, 70), rng.normal(0, 2, (3, 6, 9)).astype(np.float32)
    placement = Placement.resized((6, 9), (45, 70), align_corners=False)
    native = DenseCRF(mode, iterations=0, prune=0).marginals(photo, scores, placement=placement)
    peer = DenseCRF(mode, iterations=0, backend="torch").marginals(photo, scores, placement=placement)
    np.testing.assert_allclose(native, peer, rtol=0, atol=1e-5)
    if mode == "fast":
        full = F.interpolate(torch.from_numpy(scores)[None], (45, 70), mode="bilinear", align_corners=False)[0]
        np.testing.assert_allclose(peer, full.softmax(0).numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("axis", [(0, 0.1, 0), (3, float("nan"), 0), (3, -0.1, 0), (3, 0.1, float("nan")), (3, 1e10, 0)])
def test_an_axis_that_leads_nowhere_is_refused(axis):
    with pytest.raises(ValueError, match="are accepted"):
        Axis(*axis)


def test_a_placement_of_another_grid_is_refused():
    image, scores = np.zeros((20, 30, 3), np.uint8), np.zeros((2, 3, 4), np.float32)
    with pytest.raises(ValueError, match="scores of 3 x 4 with the placement of 3 x 5"):
        DenseCRF().labels(image, scores, placement=Placement.stepping((3, 5), 0.125))
    with pytest.raises(ValueError, match="either stride or placement"):
        DenseCRF().labels(image, scores, stride=8, placement=Placement.stepping((3, 4), 0.125))


@pytest.mark.parametrize(
    ("geometry", "reason"),
    [
        ({"scales": "squares"}, "'corners' and 'areas' are accepted"),
        ({"padded": 1}, "true and false are accepted"),
        ({"least_side": 0}, "1 to 4096 pixels are accepted"),
        ({"padded": False, "least_side": 513}, "need padded"),
        ({"crop": 513}, "crop"),
        ([], "model of this version"),
    ],
    ids=str,
)
def test_a_card_with_another_geometry_is_refused(tmp_path: Path, small_card, geometry, reason):
    network, card = small_card
    checkpoint.save(tmp_path / "m", network, {**card, "geometry": geometry})
    with pytest.raises(ModelError, match=reason):
        checkpoint.load(tmp_path / "m")


@pytest.fixture(scope="module")
def small_card() -> tuple[SegmentationNetwork, dict[str, object]]:
    network = build("vgg16-v2-largefov", 3, width=0.02).eval()
    return network, card_of(network, "vgg16-v2-largefov", width=0.02)


def test_a_card_without_geometry_has_its_architectures(tmp_path: Path, small_card):
    network, card = small_card
    checkpoint.save(tmp_path / "m", network, {key: value for key, value in card.items() if key != "geometry"})
    assert checkpoint.load(tmp_path / "m").network.geometry == Geometry()
    assert build("resnet50-aspp-v3", 3).geometry == Geometry(align_corners=False)
