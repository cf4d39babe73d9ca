"""DeconvNet against its prototxt: switches placed by hand, transposed convolutions tap by tap."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deeplab.zoo import build
from tests.deeplab.networks import reference

DECODER = {5: (3, 14), 4: (3, 28), 3: (3, 56), 2: (2, 112), 1: (2, 224)}  # deconvolutions and side after unpooling


def unpooled(x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Each value to the place of the maximum in its 2x2 window of what was pooled; zeros elsewhere."""
    windows = reference.windows(before, 2, 2, 0, float("-inf")).flatten(-2)
    best = windows.argmax(-1)
    out = torch.zeros_like(before)
    for place in range(4):
        out[:, :, place // 2 :: 2, place % 2 :: 2] = torch.where(best == place, x, torch.zeros(()))
    return out


def unit(x: torch.Tensor, module: nn.Sequential, pad: int) -> torch.Tensor:
    layer, norm = module[0], module[1]
    if isinstance(layer, nn.ConvTranspose2d):
        y = reference.transposed(x, layer.weight, 1, pad, layer.bias)
    else:
        y = F.conv2d(x, layer.weight, layer.bias, 1, pad)
    return reference.norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()


def by_hand(network: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, tuple[int, ...]]]:
    """x with sides of 32k -> scores, and the shapes after every stage."""
    before, shapes = [], {}
    for index, count in enumerate((2, 2, 3, 3, 3)):
        for layer in range(count):
            x = unit(x, network.backbone.stages[index][layer], 1)
        before.append(x)
        x = reference.max_pool(x, 2, 2, 0)
        shapes[f"pool{index + 1}"] = tuple(x.shape[1:])
    x = unit(x, network.backbone.fc6, 0)
    shapes["fc6"] = tuple(x.shape[1:])
    x = unit(unit(x, network.backbone.fc7, 0), network.head.fc6, 0)
    shapes["fc6-deconv"] = tuple(x.shape[1:])
    for index, (stage, (count, _)) in enumerate(DECODER.items()):
        x = unpooled(x, before[stage - 1])
        for layer in range(count):
            x = unit(x, network.head.stages[index][layer], 1)
        shapes[f"deconv{stage}"] = tuple(x.shape[1:])
    return F.conv2d(x, network.head.score.weight, network.head.score.bias), shapes


@torch.no_grad()
@pytest.mark.parametrize("size", [(224, 224), (256, 288)])
def test_deconvnet_is_its_prototxt(size, randomised, assert_close):
    network = randomised(build("deconvnet", 5, width=1 / 16))
    x = torch.randn(1, 3, *size)
    expected, shapes = by_hand(network, x)
    assert_close(network(x), expected)
    if size == (224, 224):
        assert [shapes[f"pool{i}"] for i in range(1, 6)] == [(4, 112, 112), (8, 56, 56), (16, 28, 28), (32, 14, 14), (32, 7, 7)]
        assert shapes["fc6"] == (256, 1, 1)
        assert shapes["fc6-deconv"] == (32, 7, 7)
        channels = {5: 32, 4: 16, 3: 8, 2: 4, 1: 4}
        assert all(shapes[f"deconv{i}"] == (channels[i], side, side) for i, (_, side) in DECODER.items())


@torch.no_grad()
@pytest.mark.parametrize("size", [(320, 320), (321, 321), (375, 500), (150, 224)], ids=str)
def test_other_sizes_are_continued_with_the_mean_colour_and_cut_back(size, randomised, assert_close):
    network = randomised(build("deconvnet", 3, width=1 / 32))
    x = torch.randn(1, 3, *size)
    canvas = torch.zeros(1, 3, *(max(224, (n + 31) // 32 * 32) for n in size))
    canvas[:, :, : size[0], : size[1]] = x
    assert_close(network(x), by_hand(network, canvas)[0][:, :, : size[0], : size[1]])


def test_the_published_net_has_the_published_stages():
    with torch.device("meta"), torch.no_grad():
        network = build("deconvnet", 21).eval()
        top, switches = network.backbone(torch.empty(1, 3, 224, 224))
    assert top.shape == (1, 4096, 1, 1)
    assert [tuple(s.shape[1:]) for s in switches] == [(64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (512, 7, 7)]
    layers = [m for m in network.head.modules() if isinstance(m, nn.ConvTranspose2d)]
    channels = [m.out_channels for m in layers]
    assert channels == [512, 512, 512, 512, 512, 512, 256, 256, 256, 128, 128, 64, 64, 64]
    assert [m.kernel_size for m in layers] == [(7, 7)] + [(3, 3)] * 13


def test_its_batch_norm_is_learnt():
    assert build("deconvnet", 2, width=1 / 32).learnt_norm
    assert not build("vgg16-largefov", 2, width=1 / 32).learnt_norm
