"""DeepLab v1 and v2 on VGG-16 against the prototxts' layer tables, written a second time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deeplab.weights.key_maps import caffe_vgg
from deeplab.zoo import build
from tests.deeplab.networks import reference
from tests.deeplab.networks.reference import LARGEFOV_BODY, SIZES, Weights

WIDTH = 1 / 16
V1 = {"vgg16-7x7": (7, 4), "vgg16-4x4": (4, 4), "vgg16-4x4-hole8": (4, 8), "vgg16-largefov": (3, 12)}
V2 = {"vgg16-v2-largefov": (12,), "vgg16-aspp-s": (2, 4, 8, 12), "vgg16-aspp-l": (6, 12, 18, 24)}


def pair(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    return module.get_parameter("weight"), module.get_parameter("bias")


def body_weights(network: nn.Module) -> Weights:
    """Convolutions in the order of the table."""
    convolutions = [module for module in network.backbone.features if isinstance(module, nn.Conv2d)]
    names = [row[0] for row in LARGEFOV_BODY if row[0].startswith("conv")]
    assert len(convolutions) == len(names) == 13
    return {name: pair(module) for name, module in zip(names, convolutions, strict=True)}


def weights_of(network: nn.Module) -> Weights:
    found = body_weights(network)
    if hasattr(network.backbone, "branches"):
        for i, (branch, score) in enumerate(zip(network.backbone.branches, network.head.scores, strict=True), 1):
            found |= {f"fc6_{i}": pair(branch.fc6), f"fc7_{i}": pair(branch.fc7), f"fc8_{i}": pair(score)}
        return found
    found |= {"fc6": pair(network.backbone.fc.fc6), "fc7": pair(network.backbone.fc.fc7), "fc8": pair(network.head.score)}
    if hasattr(network.head, "branches"):
        for tap, branch in zip(("data", "pool1", "pool2", "pool3", "pool4"), network.head.branches, strict=True):
            convolutions = [module for module in branch if isinstance(module, nn.Conv2d)]
            found |= {f"{tap}_{i}": pair(module) for i, module in enumerate(convolutions, 1)}
    return found


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("features", [False, True], ids=["plain", "msc"])
@pytest.mark.parametrize("name", V1)
def test_v1_is_the_layer_table(name, features, size, randomised, assert_close):
    kernel, hole = V1[name]
    network = randomised(build(name + ("-features" if features else ""), 5, width=WIDTH))
    x = torch.randn(1, 3, *size)
    w = weights_of(network)
    found = reference.body(x, w, LARGEFOV_BODY)
    expected = reference.branch(reference.pool5a(found["pool5"]), w, kernel, hole)
    if features:
        expected = expected + reference.feature_branches(x, found, w)
    assert_close(network(x), expected)


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", V2)
def test_v2_is_the_layer_table_without_pool5a(name, size, randomised, assert_close):
    network = randomised(build(name, 5, width=WIDTH))
    x = torch.randn(1, 3, *size)
    w = weights_of(network)
    top = reference.body(x, w, LARGEFOV_BODY)["pool5"]
    if len(V2[name]) == 1:
        expected = reference.branch(top, w, 3, 12)
    else:
        expected = sum(reference.branch(top, w, 3, rate, f"_{i}") for i, rate in enumerate(V2[name], 1))
    assert_close(network(x), expected)


@torch.no_grad()
def test_the_published_width_is_the_table_too(randomised, assert_close):
    """LargeFOV with all its channels, on a small image."""
    network = randomised(build("vgg16-largefov", 21))
    x, w = torch.randn(1, 3, 41, 50), weights_of(network)
    top = reference.pool5a(reference.body(x, w, LARGEFOV_BODY)["pool5"])
    assert_close(network(x), reference.branch(top, w, 3, 12))


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        ((320, 320), [(161, 161), (81, 81), (41, 41)]),
        ((321, 321), [(161, 161), (81, 81), (41, 41)]),
        ((375, 500), [(188, 251), (95, 126), (48, 64)]),
        ((512, 512), [(257, 257), (129, 129), (65, 65)]),
        ((513, 513), [(257, 257), (129, 129), (65, 65)]),
    ],
    ids=str,
)  # fmt: skip
def test_every_stage_has_the_tables_size(size, sides):
    """321 as the prototxt's comments have it; the others by ceil((n + 2 - 3) / 2) + 1. pool4 and pool5 keep pool3's."""
    with torch.device("meta"), torch.no_grad():
        network = build("vgg16-largefov", 21).eval()
        pools = network.backbone.pools(torch.empty(1, 3, *size))
        scores = network(torch.empty(1, 3, *size))
    channels = (64, 128, 256, 512, 512)
    expected = [*sides, sides[-1], sides[-1]]
    assert [pool.shape[1:] for pool in pools] == [(c, *side) for c, side in zip(channels, expected, strict=True)]
    assert scores.shape == (1, 21, *sides[-1])


def test_floor_pooling_is_there_by_choice():
    with torch.device("meta"), torch.no_grad():
        assert build("vgg16-largefov", 2, ceil_pool=False).eval()(torch.empty(1, 3, 512, 375)).shape[-2:] == (64, 47)


@pytest.mark.parametrize("name", ["vgg16-largefov", "vgg16-v2-largefov", "vgg16-aspp-l", "vgg16-7x7"])
def test_half_the_lattice_gives_the_same_field_of_view(name):
    """At stride 16 pool4 keeps its stride, conv5 is dense, fc6's rate is half."""
    with torch.device("meta"), torch.no_grad():
        network = build(name, 2, output_stride=16).eval()
        assert network(torch.empty(1, 3, 321, 321)).shape == (1, 2, 21, 21)
        fc6 = [m for key, m in network.named_modules() if key.endswith("fc6")]
        fine = [m for key, m in build(name, 2).named_modules() if key.endswith("fc6")]
    assert [2 * a.dilation[0] for a in fc6] == [b.dilation[0] for b in fine]


def test_keys_are_torchvisions():
    with torch.device("meta"):
        keys = set(build("vgg16-largefov", 2).backbone.state_dict())
    assert {f"{name.removeprefix('backbone.')}.weight" for name in caffe_vgg().values()} <= keys


def test_a_stride_or_a_width_that_does_not_exist_is_refused():
    for options in ({"output_stride": 4}, {"width": 0}, {"width": 2}):
        with pytest.raises(ValueError, match="accepted"):
            build("vgg16-aspp-l", 2, **options)
    with pytest.raises(ValueError, match="feature branches"):
        build("vgg16-largefov-features", 2, output_stride=16)
