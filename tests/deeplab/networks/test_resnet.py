"""DeepLab v2 on ResNet against Caffe's layout, and v3's head against torchvision's, written or built a second time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from deeplab.networks import resnet as resnet_module
from deeplab.networks.torchvision_heads import DeepLabV3Head
from deeplab.zoo import build
from tests.deeplab.networks import reference

BRANCHES = {"branch2a": ("conv1", "bn1"), "branch2b": ("conv2", "bn2"), "branch2c": ("conv3", "bn3")}
RATES = {"aspp": (6, 12, 18, 24), "largefov": (12,), "plain": (0,)}


def layer_of(network: nn.Module) -> Callable[..., torch.Tensor]:
    """Convolution, BN with global statistics, Scale, looked up by Caffe's layer name in our network."""

    def conv_norm(x: torch.Tensor, name: str, stride: int, pad: int, hole: int) -> torch.Tensor:
        backbone = network.backbone
        if name == "conv1":
            convolution, norm = backbone.conv1, backbone.bn1
        else:
            place, branch = name.split("_")
            stage, block = map(int, place.split("."))
            owner = getattr(backbone, f"layer{stage - 1}")[block]
            convolution, norm = owner.downsample if branch == "branch1" else (getattr(owner, part) for part in BRANCHES[branch])
        y = F.conv2d(x, convolution.weight, None, stride, pad, hole)
        return reference.norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    return conv_norm


def head_scores(network: nn.Module, features: torch.Tensor, rates: tuple[int, ...]) -> torch.Tensor:
    layers = network.head.branches if len(rates) > 1 else [network.head.score]
    return sum(F.conv2d(features, layer.weight, layer.bias, 1, rate, rate or 1) for layer, rate in zip(layers, rates, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("size", [(320, 321), (375, 500), (512, 40), (513, 41)], ids=str)
@pytest.mark.parametrize("head", RATES)
def test_v2_is_caffes_layout_at_the_papers_sizes(head, size, monkeypatch, randomised, assert_close):
    """One or two blocks a stage, which keeps every stride, hole and rounding and a tenth of the work."""
    monkeypatch.setitem(resnet_module.BLOCKS, 50, (1, 1, 2, 1))
    network = randomised(build(f"resnet50-{head}", 4))
    x = torch.randn(1, 3, *size)
    stages = reference.resnet_v2(x, layer_of(network), (1, 1, 2, 1))
    assert_close(network(x), head_scores(network, stages["res5"], RATES[head]))


@torch.no_grad()
@pytest.mark.parametrize(("depth", "blocks"), [(50, (3, 4, 6, 3)), (101, (3, 4, 23, 3))])
@pytest.mark.parametrize("head", RATES)
def test_v2_is_caffes_layout_at_its_whole_depth(depth, blocks, head, randomised, assert_close):
    network = randomised(build(f"resnet{depth}-{head}", 3))
    x = torch.randn(1, 3, 49, 60)
    stages = reference.resnet_v2(x, layer_of(network), blocks)
    assert [stages[f"res{i}"].shape[1] for i in (2, 3, 4, 5)] == [256, 512, 1024, 2048]
    assert_close(network(x), head_scores(network, stages["res5"], RATES[head]))


@pytest.mark.parametrize(("size", "scores"), [((320, 320), (41, 41)), ((321, 321), (41, 41)), ((375, 500), (48, 63)),
                                              ((512, 512), (65, 65)), ((513, 513), (65, 65))], ids=str)  # fmt: skip
def test_v2_has_the_tables_sizes_after_every_stage(size, scores):
    with torch.device("meta"), torch.no_grad():
        backbone = build("resnet101-aspp", 21).backbone.eval()
        x = torch.empty(1, 64, *((n + 1) // 2 for n in size))  # after conv1
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
        shapes = [x.shape[-2:]]
        for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
            x = stage(x)
            shapes.append(x.shape[-2:])
    quarter = tuple(reference.pooled_side((n + 1) // 2, 3, 2, 1) for n in size)
    assert [tuple(shape) for shape in shapes] == [quarter, quarter, scores, scores, scores]


@torch.no_grad()
@pytest.mark.parametrize("size", [(33, 40), (65, 97)])
def test_v3s_head_is_torchvisions(size, randomised, assert_close):
    theirs = randomised(torchvision.models.segmentation.deeplabv3.DeepLabHead(64, 5))
    ours = DeepLabV3Head(64, 5).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 64, *size)
    assert_close(ours(x), theirs(x))


@torch.no_grad()
def test_v3s_head_written_out(randomised, assert_close):
    """Once more by its formula: five branches of 256, image pooling spread over the map, project, 3x3, scores."""
    head = randomised(DeepLabV3Head(48, 3, (2, 4, 6)))
    x = torch.randn(2, 48, 11, 13)

    def unit(x, conv, norm, pad=0, hole=1):
        y = F.conv2d(x, conv.weight, None, 1, pad, hole)
        return reference.norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()

    convs = head[0].convs
    maps = [unit(x, convs[0][0], convs[0][1])]
    maps += [unit(x, convs[i][0], convs[i][1], rate, rate) for i, rate in enumerate((2, 4, 6), 1)]
    pooled = unit(x.mean((2, 3), keepdim=True), convs[4][1], convs[4][2])
    y = torch.cat([*maps, pooled.repeat(1, 1, 11, 13)], 1)
    assert y.shape[1] == 5 * 256
    y = unit(unit(y, head[0].project[0], head[0].project[1]), head[1], head[2], 1)
    assert_close(head(x), F.conv2d(y, head[4].weight, head[4].bias))


@pytest.mark.parametrize(("name", "side"), [("resnet50-aspp-v3", 41), ("resnet101-aspp-v3", 41), ("mobilenet-v2-aspp-v3", 41),
                                            ("mobilenet-v3-aspp-v3", 21)])  # fmt: skip
def test_v3_nets_score_on_the_lattice(name, side):
    with torch.device("meta"), torch.no_grad():
        assert build(name, 21).eval()(torch.empty(1, 3, 321, 321)).shape == (1, 21, side, side)


def test_the_mean_that_is_subtracted_is_a_choice():
    with torch.device("meta"):
        assert build("resnet50-plain", 2).normalization.mean == (103.939, 116.779, 123.68)
        assert build("resnet50-plain", 2, mean="deeplab").normalization.mean == (104.008, 116.669, 122.675)
        with pytest.raises(ValueError, match="accepted"):
            build("resnet50-plain", 2, mean="none")
