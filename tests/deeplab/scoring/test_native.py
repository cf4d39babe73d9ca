"""The engine for MobileNetV2 networks: the sums are the network's, in every size and build, and int8 is the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deeplab.networks.deeplab_heads import ASPP
from deeplab.networks.image_pooling_head import ImagePoolingHead, ShortMobileNetV2
from deeplab.networks.mobilenet import InvertedResidual, MobileNetV2
from deeplab.networks.network import MOBILE, TENSORFLOW, Normalization, SegmentationNetwork
from deeplab.scoring.native.calibration import calibrated
from deeplab.scoring.native.engine import builds, native_network

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


def reference(net: SegmentationNetwork, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return net(net.normalization.apply(x))


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


@BFLOAT16
@pytest.mark.parametrize(("height", "width", "stride", "padding", "classes", "rates"), CASES)
def test_bfloat16_is_the_network_up_to_rounding(height, width, stride, padding, classes, rates):
    for head in ("aspp", "pooling"):
        net = network(classes, stride, padding, head, rates)
        x = pixels(height, width, count=2)
        native = native_network(net, "bfloat16")
        assert native is not None
        exact = reference(net, x)
        assert error(native(x), exact) < 0.07  # two of three digits of bfloat16, through 54 layers
        torch.testing.assert_close(native(net.normalization.apply(x)), native(x), rtol=0, atol=0)


@pytest.mark.parametrize(("height", "width", "stride", "padding", "classes", "rates"), CASES)
def test_int8_is_the_same_in_all_builds_and_near_the_network(height, width, stride, padding, classes, rates):
    for head in ("aspp", "pooling"):
        net = network(classes, stride, padding, head, rates, MOBILE if stride == 16 else TENSORFLOW)
        net.quantization = calibrated(net, [x.numpy() for x in pixels(105, 97, 2, seed=1).permute(0, 2, 3, 1)])
        x = pixels(height, width, count=2)
        results = [native_network(net, "int8", build=build)(x) for build in builds("int8")]  # type: ignore[misc]
        assert results
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=0, atol=0)
        if min(height, width) > 40:  # small ones are mostly border, which the calibration hardly saw
            assert error(results[0], reference(net, x)) < 0.2
