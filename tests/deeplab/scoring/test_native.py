"""The engine for MobileNetV2 networks: the sums are the network's, in every size and build, and int8 is the same everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from deeplab.images.decoding import decode
from deeplab.models import checkpoint, ensemble
from deeplab.networks.deeplab_heads import ASPP
from deeplab.networks.image_pooling_head import ImagePoolingHead, ShortMobileNetV2
from deeplab.networks.mobilenet import InvertedResidual, MobileNetV2
from deeplab.networks.network import MOBILE, TENSORFLOW, Normalization, SegmentationNetwork
from deeplab.scoring.int8.calibration import calibrated
from deeplab.scoring.int8.choice import cpu_network
from deeplab.scoring.int8.codes import Int8Error
from deeplab.scoring.model_predictor import predictor_of
from deeplab.scoring.native.engine import NativeNetwork, builds, native_network
from deeplab.scoring.native.layers import layers_of
from deeplab.scoring.native.program import bfloat16_program
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.settings import Scoring
from deeplab.weights.foreign_networks import OFFICIAL, OWN_SIZE
from deeplab.zoo import build

EXAMPLES = Path(__file__).parents[3] / "examples" / "pets" / "images"
BFLOAT16 = pytest.mark.skipif(not builds("bfloat16"), reason="a processor with AVX-512 BF16 is needed")


def network(
    classes: int = 3,
    stride: int = 8,
    padding: str = "same",
    head: str = "aspp",
    rates: tuple[int, ...] = (1, 2, 5),
    normalization: Normalization = TENSORFLOW,
    seed: int = 0,
) -> SegmentationNetwork:
    """Random weights and statistics. Blocks add little to their shortcuts, so that errors do not grow from block to block."""
    torch.manual_seed(seed)
    backbone = (MobileNetV2 if head == "aspp" else ShortMobileNetV2)(stride, padding)  # type: ignore[arg-type]
    top = ASPP(backbone.channels, classes, rates) if head == "aspp" else ImagePoolingHead(backbone.channels, classes)
    for module in [*backbone.modules(), *top.modules()]:
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0, (2 / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.3)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for module in backbone.modules():
        if isinstance(module, InvertedResidual):
            module.project[0].weight.data.mul_(0.3 if module.shortcut else 1.0)
    return SegmentationNetwork(backbone, top, classes, normalization).eval()


def pixels(height: int, width: int, count: int = 1, seed: int = 0) -> torch.Tensor:
    """Blurred noise, B x 3 x H x W uint8, channels innermost."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (count, 3, max(1, height // 8), max(1, width // 8))))
    x = nn.functional.interpolate(coarse, (height, width)) + torch.from_numpy(rng.normal(0, 20, (count, 3, height, width)))
    return x.round().clamp(0, 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    assert ours.shape == exact.shape and ours.dtype == torch.float32
    return float((ours - exact).norm() / exact.norm())


# Height, width, stride, padding, classes, rates: sides of one pixel, even and odd ones, rates beyond the map.
CASES = [
    (1, 1, 8, "same", 3, (6, 12, 18, 24)),
    (1, 40, 8, "same", 1, (1,)),
    (33, 1, 16, "symmetric", 2, (3, 6)),
    (2, 3, 32, "same", 2, (2,)),
    (64, 96, 8, "same", 3, (1, 2, 5)),
    (64, 96, 8, "symmetric", 3, (1, 2, 5)),
    (97, 129, 16, "same", 5, (3, 6, 9, 12)),
    (90, 51, 32, "symmetric", 4, (1, 3)),
    (57, 82, 16, "same", 40, (2, 4)),  # several groups of branches
    (105, 41, 8, "symmetric", 3, (6, 12, 18, 24)),
]


@pytest.mark.parametrize("head", ["aspp", "pooling"])
@pytest.mark.parametrize(("height", "width", "stride", "padding", "classes", "rates"), CASES)
def test_every_build_gives_the_scores_of_the_network_and_all_of_int8_the_same(height, width, stride, padding, classes, rates, head):
    net = network(classes, stride, padding, head, rates, MOBILE if stride == 16 else TENSORFLOW)
    x = pixels(height, width, count=2)
    with torch.inference_mode():
        exact = net(net.normalization.apply(x))
    for instructions in builds("bfloat16"):
        native = native_network(net, "bfloat16", build=instructions)
        assert native is not None
        assert error(native(x), exact) < 0.07  # two of three digits of bfloat16, through 54 layers
        torch.testing.assert_close(native(net.normalization.apply(x)), native(x), rtol=0, atol=0)
    net.quantization = calibrated(net, [x.numpy() for x in pixels(65, 57, seed=1).permute(0, 2, 3, 1)])
    results = [native_network(net, "int8", build=name)(x) for name in builds("int8")]  # type: ignore[misc]
    assert results
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)
    if min(height, width) > 40:  # small ones are mostly border, which the calibration hardly saw
        assert error(results[0], exact) < 0.3


def photos(count: int) -> list[np.ndarray]:
    return [decode(path.read_bytes()) for path in sorted(EXAMPLES.glob("*.jpg"))[:count]]


@pytest.mark.parametrize(("name", "least"), [("pets", 0.994), ("voc", 0.985)])
def test_a_bundled_model_in_int8_says_what_float32_says(name, least):
    network, images = checkpoint.load(name).network, photos(6)
    int8, exact = (Predictor(network, Scoring(precision=p), device="cpu").labels(images) for p in ("int8", "float32"))
    assert np.mean([(a == b).mean() for a, b in zip(int8, exact, strict=True)]) > least


@pytest.mark.parametrize("precision", ["int8", pytest.param("bfloat16", marks=BFLOAT16)])
def test_masks_do_not_depend_on_company_threads_and_tiles_orders(precision):
    network, images = checkpoint.load("pets").network, photos(4)
    scoring = Scoring(scales=(0.5, 1.0), flip=True, precision=precision, tile=193, overlap=64)
    predictor = Predictor(network, scoring, device="cpu")
    assert isinstance(predictor.network, NativeNetwork) or precision == "bfloat16"
    together = predictor.labels(images)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for image, labels in zip(reversed(images), reversed(together), strict=True):
            assert np.array_equal(predictor.labels([image])[0], labels)
    finally:
        torch.set_num_threads(threads)


def test_int8_is_refused_where_it_cannot_be():
    broken = network()
    broken.backbone.features[3].project[0].weight.data[0] = float("nan")
    with pytest.raises(Int8Error, match="results are not finite"):
        calibrated(broken, [np.zeros((40, 40, 3), np.uint8)])
    with pytest.raises(Int8Error, match="no photos"):
        calibrated(network(), [])
    foreign = network(classes=4)
    foreign.quantization = calibrated(network(classes=3), [np.zeros((40, 40, 3), np.uint8)])
    with pytest.raises(Int8Error, match="ranges of another network"):
        native_network(foreign, "int8")
    with pytest.raises(Int8Error, match="it is for CPUs; on meta float16 is accepted"):
        cpu_network(network(), "int8", torch.device("meta"))


def test_photos_without_contrast_give_ranges():
    net = network()
    net.quantization = calibrated(net, [np.full((1, 1, 3), 255, np.uint8)])
    assert bool(torch.isfinite(native_network(net, "int8")(pixels(33, 33))).all())  # type: ignore[misc]


@BFLOAT16
@pytest.mark.parametrize("amx", [False, True])
def test_bfloat16_is_left_to_torch_where_the_processor_has_amx(monkeypatch, amx):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    predictor = Predictor(network(), Scoring(precision="bfloat16"), device="cpu")
    assert isinstance(predictor.network, NativeNetwork) != amx


def test_a_build_that_the_machine_lacks_is_refused():
    layers = layers_of(network())
    assert layers is not None
    with pytest.raises(ValueError, match="this machine or this package lacks it"):
        NativeNetwork(network(), bfloat16_program(layers), "sse9")


@pytest.mark.parametrize("precision", ["int8", pytest.param("bfloat16", marks=BFLOAT16)])
@pytest.mark.parametrize("geometry", [OWN_SIZE, OFFICIAL], ids=["own size", "padded with the mean"])
def test_a_networks_geometry_and_mixed_grids_hold_on_own_kernels(precision, geometry):
    """Against torch in float32; a network without them gives other labels."""
    name, photo = "mobilenet-v2-aspp", photos(1)[0][:90, :131]
    pets = checkpoint.load("pets")
    networks = {}
    for kind, options in (("it", {"trained_stride": 16}), ("another", {})):
        networks[kind] = build(name, len(pets.classes), **options).eval()
        networks[kind].load_state_dict(pets.network.state_dict())
        networks[kind].quantization = pets.network.quantization
    networks["it"].geometry = geometry
    for scales in ((1.0,), (0.75, 1.0)):
        ours, exact, other = (
            Predictor(network, Scoring(scales=scales, precision=p), device="cpu", score_dtype=torch.float32)
            for network, p in ((networks["it"], precision), (networks["it"], "float32"), (networks["another"], precision))
        )
        assert isinstance(ours.network, NativeNetwork)
        scores, expected = (predictor.scores([photo])[0] for predictor in (ours, exact))
        assert scores.shape == expected.shape
        difference = np.abs(scores - expected).mean()
        assert difference < 0.08 * expected.std()
        plain = other.scores([photo])[0]
        rows, columns = min(plain.shape[1], scores.shape[1]), min(plain.shape[2], scores.shape[2])
        assert np.abs(plain[:, :rows, :columns] - expected[:, :rows, :columns]).mean() > 2 * difference


def test_ranges_hold_at_another_stride_and_in_an_ensemble(tmp_path):
    ensemble.save(tmp_path / "both", "both", [checkpoint.read("pets")] * 2, "mean")
    images = photos(4)
    for model in (checkpoint.load("pets").at_stride(16), checkpoint.load(tmp_path / "both")):
        int8, exact = (predictor_of(model, Scoring(precision=p), device="cpu").labels(images) for p in ("int8", "float32"))
        assert np.mean([(a == b).mean() for a, b in zip(int8, exact, strict=True)]) > 0.985
