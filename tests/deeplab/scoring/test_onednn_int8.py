"""Networks in int8 through oneDNN: the codes are those of exact sums, in every size, batch and number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deeplab.images.decoding import decode
from deeplab.models import checkpoint
from deeplab.networks.network import SegmentationNetwork
from deeplab.networks.resnet import BLOCKS
from deeplab.scoring.int8.calibration import calibrated
from deeplab.scoring.int8.choice import cpu_network, require_int8
from deeplab.scoring.int8.codes import Int8Error
from deeplab.scoring.int8.onednn_network import OnednnNetwork, PackedConvolution, available, max_pool
from deeplab.scoring.int8.steps import MaxPool
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.settings import Scoring
from deeplab.zoo import build
from tests.deeplab.scoring.test_native import error, pixels

PHOTO = Path(__file__).parents[3] / "examples" / "photos" / "cat.jpg"
VNNI = pytest.mark.skipif(not available(), reason="a processor with VNNI is needed")


def network(name: str, classes: int = 3, **options: object) -> SegmentationNetwork:
    """Random weights and statistics. Blocks add little to their shortcuts, so that errors do not grow from block to block."""
    net = build(name, classes, seed=0, **options).eval()
    generator = torch.Generator().manual_seed(0)
    for key, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.3, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.6, 1.4, generator=generator).mul_(0.3 if key.endswith("bn3") else 1)
            module.bias.data.normal_(0, 0.1, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
    net.requires_grad_(False)
    net.quantization = calibrated(net, [x.numpy() for x in pixels(65, 57, count=2, seed=1).permute(0, 2, 3, 1)])
    return net


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Few blocks suffice: with and without a new shortcut, with a stride and with a rate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BLOCKS, 50, (2, 1, 1, 2))
        yield


@pytest.fixture(scope="module")
def resnet(short) -> SegmentationNetwork:
    return network("resnet50-aspp")


@pytest.fixture(scope="module")
def engine(resnet) -> OnednnNetwork:
    own = cpu_network(resnet, "int8")
    assert isinstance(own, OnednnNetwork)
    return own


class Exact:
    """A ResNet by its modules, each convolution by sums of whole numbers (in float64, which holds them exactly).

    The inputs of each are the codes that were computed for the layer before; `wrong`: the largest difference of a code, `share`:
    of codes that differ.
    """

    def __init__(self, net: SegmentationNetwork, results: list[torch.Tensor]) -> None:
        assert net.quantization is not None
        self.net, self.results = net, iter(results)
        q = net.quantization
        self.codes: Iterator[tuple[float, int]] = iter(zip(q.scale.astype(float), q.zero.astype(float), strict=True))
        self.biases, self.wrong, self.differ, self.count = q.bias.astype(float), 0.0, 0, 0

    def bias(self, count: int) -> torch.Tensor:
        values, self.biases = self.biases[:count], self.biases[count:]
        return torch.from_numpy(values).view(1, -1, 1, 1)

    def weights(self, conv: nn.Conv2d, norm: nn.Module | None) -> torch.Tensor:
        weight = conv.weight.double()
        if isinstance(norm, nn.BatchNorm2d):
            weight = weight * (norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()).view(-1, 1, 1, 1)  # type: ignore[union-attr]
        return weight

    def sums(self, x: torch.Tensor, weight: torch.Tensor, conv: nn.Conv2d, zero: float = 0) -> torch.Tensor:
        """Values of a convolution of codes with scale 1, by whole numbers."""
        step = weight.abs().amax((1, 2, 3), keepdim=True) / 127
        whole = F.conv2d(x - zero, (weight / step).round(), None, conv.stride, conv.padding, conv.dilation, conv.groups)
        return whole * step.view(1, -1, 1, 1)

    def stem(self, image: torch.Tensor) -> tuple[torch.Tensor, float, int]:
        norm, backbone = self.net.normalization, self.net.backbone
        weight = self.weights(backbone.conv1, backbone.bn1)  # type: ignore[arg-type]
        weight = weight.flip(1) if norm.order == "BGR" else weight
        deviation = torch.tensor(norm.std[::-1] if norm.order == "BGR" else norm.std, dtype=torch.float64).view(1, 3, 1, 1)
        mean = torch.tensor(norm.mean_rgb, dtype=torch.float64).view(1, 3, 1, 1)
        border = mean.round()
        shift = (weight / deviation * (border - mean)).sum((1, 2, 3)).view(1, -1, 1, 1)
        y = self.sums(image.double() - border, weight / deviation, backbone.conv1) + shift  # type: ignore[arg-type]
        return self.compared(y + self.bias(y.shape[1]))

    def compared(self, values: torch.Tensor) -> tuple[torch.Tensor, float, int]:
        """The codes that were computed for these values, and what they mean."""
        scale, zero = next(self.codes)
        exact, codes = (values / scale + zero).round().clamp(0, 255), next(self.results).double()
        assert codes.shape == exact.shape
        self.wrong = max(self.wrong, float((codes - exact).abs().max()))
        self.differ += int((codes != exact).sum())
        self.count += codes.numel()
        return codes, scale, zero

    def layer(
        self,
        x: tuple[torch.Tensor, float, int],
        conv: nn.Conv2d,
        norm: nn.Module,
        add: tuple[torch.Tensor, float, int] | None = None,
        shares: torch.Tensor | None = None,
        weight: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, float, int]:
        codes, scale, zero = x
        own = self.weights(conv, norm) if weight is None else weight
        y = self.sums(codes, own, conv, zero) * scale + self.bias(len(own))
        if add:
            y = y + (add[0] - add[2]) * add[1]
        return self.compared(y if shares is None else y + shares)

    def features(self, image: torch.Tensor) -> tuple[torch.Tensor, float, int]:
        x = self.stem(image)
        x = (F.max_pool2d(x[0], 3, 2, 1, ceil_mode=bool(self.net.backbone.ceil_pool)), *x[1:])
        for stage in self.net.backbone.layers()[2:]:  # type: ignore[operator]
            for block in stage:
                y = self.layer(self.layer(x, block.conv1, block.bn1), block.conv2, block.bn2)
                shortcut = x if block.downsample is None else self.layer(x, *block.downsample)
                x = self.layer(y, block.conv3, block.bn3, add=shortcut)
        return x


def computed(monkeypatch, own: OnednnNetwork, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The codes that every convolution gives, and the scores."""
    results: list[torch.Tensor] = []
    plain = PackedConvolution.__call__

    def kept(self: PackedConvolution, *args: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        y = plain(self, *args, **options)
        if y.dtype == torch.uint8:
            results.append(y.clone())
        return y

    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setattr(PackedConvolution, "__call__", kept)
        scores = own(x)
    return results, scores


# From one pixel up, odd and even sides, maps below and above the size where another layout of the weights begins.
SIZES = [(1, 1), (1, 40), (33, 1), (2, 3), (65, 57), (96, 64), (97, 131)]


@VNNI
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_code_of_a_resnet_is_that_of_exact_sums_within_one_rounding(monkeypatch, resnet, engine, height, width):
    x = pixels(height, width)
    results, scores = computed(monkeypatch, engine, x)
    exact = Exact(resnet, results)
    codes, scale, zero = exact.features(x)
    assert exact.wrong <= 1 and exact.differ <= 1e-3 * exact.count
    assert next(exact.codes, None) is None and len(exact.biases) == 3  # the last bias is the scores'
    total: torch.Tensor | float = 0.0
    for branch in resnet.head.branches:  # type: ignore[union-attr]
        weight = branch.weight.double()
        step = weight.abs().amax(1, keepdim=True) / 127  # a scale for each tap
        total = total + F.conv2d((codes - zero) * scale, (weight / step).round() * step, None, 1, branch.padding, branch.dilation)
    torch.testing.assert_close(scores, (total + exact.bias(3)).float(), rtol=1e-4, atol=1e-4)


@VNNI
def test_every_code_of_version_3s_head_is_that_of_exact_sums_within_one_rounding(monkeypatch):
    """Joined branches of different scales, and image pooling, which is each image's own."""
    net = network("resnet50-aspp-v3", 4)
    own = cpu_network(net, "int8")
    assert isinstance(own, OnednnNetwork)
    x = pixels(49, 34, count=2)
    for number in range(2):
        results, scores = computed(monkeypatch, own, x[number : number + 1])
        exact = Exact(net, results)
        top = exact.features(x[number : number + 1])
        pyramid, conv, norm, _, last = net.head.children()
        *branches, pooling = pyramid.convs  # type: ignore[union-attr]
        mean = (top[0].mean((2, 3), keepdim=True) - top[2]) * top[1]
        pooled = F.relu(F.conv2d(mean, exact.weights(pooling[1], pooling[2])) + exact.bias(256))
        parts = [exact.layer(top, branch[0], branch[1]) for branch in branches]
        joined = torch.cat([codes for codes, _, _ in parts], 1), 1.0, 0
        assert {zero for _, _, zero in parts} == {0}
        weight = exact.weights(*pyramid.project[:2])  # type: ignore[union-attr]
        shares = F.conv2d(pooled, weight[:, -256:])
        scales = torch.tensor([scale for _, scale, _ in parts]).repeat_interleave(256).view(1, -1, 1, 1)
        x3 = exact.layer(joined, pyramid.project[0], nn.Identity(), None, shares, weight[:, :-256] * scales)  # type: ignore[union-attr]
        codes, scale, _ = exact.layer(x3, conv, norm)  # type: ignore[arg-type]
        assert exact.wrong <= 1 and exact.differ <= 1e-3 * exact.count
        torch.testing.assert_close(scores, (exact.sums(codes, last.weight.double(), last) * scale + exact.bias(4)).float())  # type: ignore[arg-type,union-attr]
        with torch.inference_mode():
            torch.testing.assert_close(own(x)[number : number + 1], scores, rtol=0, atol=0)


# One of each head and backbone; VGG-16 with an eighth of its channels.
OTHERS = [
    ("resnet50-largefov", {}),
    ("resnet50-plain", {"output_stride": 16, "trained_stride": 16, "mean": "deeplab"}),
    ("resnet50-fcn", {"ceil_pool": True}),
    ("vgg16-7x7", {"width": 0.125}),
    ("vgg16-4x4", {"width": 0.125, "output_stride": 16}),
    ("vgg16-v2-largefov", {"width": 0.125, "ceil_pool": False}),
    ("vgg16-aspp-l", {"width": 0.125, "output_stride": 32}),
]


@VNNI
@pytest.mark.parametrize(("name", "options"), OTHERS)
def test_other_heads_and_backbones_give_the_scores_of_the_network(name, options):
    net = network(name, **options)
    own, x = cpu_network(net, "int8"), pixels(81, 97)
    with torch.inference_mode():
        assert own is not None
        exact, other = net(net.normalization.apply(x)), net(net.normalization.apply(x.flip(1)))
        assert error(own(x), exact) < 0.1 < error(other, exact)
        torch.testing.assert_close(own(net.normalization.apply(x)), own(x), rtol=0, atol=0)


@VNNI
def test_mobilenet_under_version_3s_head_gives_the_scores_of_the_network():
    """The backbone is a trained one: with random weights, errors of its codes grow from block to block."""
    net = network("mobilenet-v2-aspp-v3")
    net.backbone.load_state_dict(checkpoint.load("pets").network.backbone.state_dict())
    photo = decode(PHOTO.read_bytes())[:161, :193]
    net.quantization = calibrated(net, [photo])
    own, x = cpu_network(net, "int8"), torch.from_numpy(photo).permute(2, 0, 1)[None]
    assert isinstance(own, OnednnNetwork)
    with torch.inference_mode():
        exact, other = net(net.normalization.apply(x)), net(net.normalization.apply(x.flip(1)))
        assert error(own(x), exact) < 0.1 < error(other, exact)


@VNNI
def test_masks_do_not_depend_on_company_threads_and_tiles_orders(resnet):
    images = [x.numpy() for height, width in ((60, 50), (33, 50), (40, 130)) for x in pixels(height, width).permute(0, 2, 3, 1)]
    images.append(images[0][::-1].copy())
    scoring = Scoring(scales=(0.5, 1.0), flip=False, precision="int8", tile=97, overlap=32)
    predictor = Predictor(resnet, scoring, score_dtype=torch.float32)
    together = predictor.scores(images)
    exact = Predictor(resnet, replace(scoring, precision="float32"), device="cpu", score_dtype=torch.float32).scores(images)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        for image, scores in zip(reversed(images), reversed(together), strict=True):
            assert np.array_equal(predictor.scores([image])[0], scores)
    finally:
        torch.set_num_threads(threads)
    for ours, theirs in zip(together, exact, strict=True):
        assert np.abs(ours - theirs).mean() < 0.1 * theirs.std()


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "ceil"), [(3, 2, 1, True), (3, 2, 1, False), (3, 1, 1, True), (2, 2, 0, True)]
)
def test_the_pool_of_codes_is_torchs(kernel, stride, padding, ceil):
    for height, width in ((2, 2), (2, 3), (5, 8), (9, 7), (10, 31)):
        x = torch.randint(0, 256, (2, 5, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(height))
        step = MaxPool(0, kernel, stride, padding, ceil)
        expected = F.max_pool2d(x.float(), kernel, stride, padding, ceil_mode=ceil)
        assert torch.equal(max_pool(x.contiguous(memory_format=torch.channels_last), step).float(), expected), (height, width)
        assert (step.side(height), step.side(width)) == tuple(expected.shape[-2:])


def test_what_cannot_be_is_one_line(monkeypatch, resnet):
    for name in ("vgg16-attention", "vgg16-largefov-features", "fcn8s", "mobilenet-v3-aspp-v3"):
        with torch.device("meta"):
            other = build(name, 3)
        with pytest.raises(Int8Error, match=r"ResNet networks \(resnet50-.* are accepted; this network is of another kind"):
            require_int8(other)
    foreign = build("vgg16-largefov", 3, width=0.1).eval()
    foreign.quantization = resnet.quantization
    with pytest.raises(Int8Error, match="ranges of another network"):
        cpu_network(foreign, "int8")
    foreign.features = None
    next(foreign.parameters()).data[0] = float("nan")
    with pytest.raises(Int8Error, match="results are not finite"):
        calibrated(foreign, [np.zeros((40, 40, 3), np.uint8)])
    foreign.quantization = None
    with pytest.raises(Int8Error, match="no ranges for it; `deeplab quantize MODEL PHOTOS`"):
        Predictor(foreign, Scoring(precision="int8"))
    monkeypatch.setattr("deeplab.scoring.int8.choice.available", lambda: False)
    with pytest.raises(Int8Error, match="this network needs a processor with VNNI"):
        Predictor(resnet, Scoring(precision="int8"))


def test_a_processor_without_vnni_is_known_by_its_sums():
    """oneDNN is told to do without; its sums are others then."""
    code = "from deeplab.scoring.int8.onednn_network import available; print(available())"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False"]
