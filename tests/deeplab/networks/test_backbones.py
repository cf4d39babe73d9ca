"""Backbones against torchvision's, with random weights and random batch-norm statistics, in float64."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn import functional as F

from deeplab.convolutions.conv_norm import ConvBatchNorm
from deeplab.networks.mobilenet import MobileNetV2, conv_bn_relu6
from deeplab.networks.resnet import ResNet
from deeplab.weights import WeightsError, load_backbone, mobilenet_v2_keys, read_safetensors


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics and affine terms as well, so that a batch norm left out or swapped shows; and weights that keep
    the signal's size (by fan-in), so that what the first layers do is not washed out at the end."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.6, 1.2)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval().double()


def dilations(backbone: nn.Module) -> list[tuple[int, int]]:
    """(rate, stride) of every 3x3 convolution in order."""
    convolutions = (m for m in backbone.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
    return [(m.dilation[0], m.stride[0]) for m in convolutions]


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    return randomise(torchvision.models.mobilenet_v2(weights=None))


def mobilenet(theirs: nn.Module, output_stride: int, padding: str) -> MobileNetV2:
    ours = MobileNetV2(output_stride, padding).double()
    load_backbone(ours, theirs.state_dict(), mobilenet_v2_keys(), ("classifier.",))
    return ours.eval()


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (65, 71)])
def test_mobilenet_with_torchvisions_weights_gives_torchvisions_features(theirs, size):
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(mobilenet(theirs, 32, "symmetric")(x), theirs.features(x))


@torch.no_grad()
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_mobilenet_on_the_lattice_gives_one_feature_every_stride_in_both_paddings(theirs, stride):
    x = torch.randn(1, 3, 65, 33, dtype=torch.float64)
    same, symmetric = (mobilenet(theirs, stride, padding)(x) for padding in ("same", "symmetric"))
    assert same.shape == (1, 1280, 64 // stride + 1, 32 // stride + 1)
    torch.testing.assert_close(same, symmetric)


@torch.no_grad()
def test_mobilenets_paddings_differ_at_even_sizes(theirs):
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    same, symmetric = (mobilenet(theirs, 32, padding)(x) for padding in ("same", "symmetric"))
    assert same.shape == symmetric.shape
    assert (same - symmetric).abs().max() > 0.01


@torch.no_grad()
def test_holes_see_what_strides_saw(theirs):
    """A dilated net's features, taken every second place, are those of the strided net: no sum is lost or moved."""
    x = torch.randn(1, 3, 65, 97, dtype=torch.float64)
    fine, middle, coarse = (mobilenet(theirs, stride, "same")(x) for stride in (8, 16, 32))
    torch.testing.assert_close(fine[..., ::2, ::2], middle)
    torch.testing.assert_close(fine[..., ::4, ::4], coarse)


def test_mobilenet_takes_the_new_rate_only_after_the_layer_that_lost_its_stride():
    strides = [pair for pair in dilations(MobileNetV2(8)) if pair[1] == 2]
    assert len(strides) == 3  # 2 * 2 * 2
    assert Counter(rate for rate, _ in dilations(MobileNetV2(8))) == {1: 8, 2: 7, 4: 3}
    assert Counter(rate for rate, _ in dilations(MobileNetV2(16))) == {1: 15, 2: 3}
    assert Counter(rate for rate, _ in dilations(MobileNetV2(32))) == {1: 18}


@torch.no_grad()
@pytest.mark.parametrize("side", [10, 11, 224])
def test_a_strided_layer_pads_as_tensorflow_does(side):
    block = randomise(conv_bn_relu6(3, 4, 3, 2, padding="same"))
    assert isinstance(block, ConvBatchNorm)
    conv, norm = block[0], block[1]
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    front = side % 2  # TensorFlow: 2 zeros in all at odd sides, 1 (at the end) at even ones
    expected = F.relu6(norm(F.conv2d(F.pad(x, (front, 1, front, 1)), conv.weight, stride=2)))
    torch.testing.assert_close(block(x), expected)


@torch.no_grad()
@pytest.mark.parametrize(("stride", "replace"), [(8, [False, True, True]), (16, [False, False, True]), (32, [False] * 3)])
def test_resnet_in_torchvisions_layout_gives_torchvisions_features(stride, replace):
    theirs = randomise(torchvision.models.resnet50(weights=None, replace_stride_with_dilation=replace), seed=stride)
    ours = ResNet(50, stride, stride_in="3x3", ceil_pool=False, dilate_first=False).eval().double()
    load_backbone(ours, theirs.state_dict(), {}, ("fc.",))
    x = torch.randn(1, 3, 36, 33, dtype=torch.float64)
    y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(y))))
    torch.testing.assert_close(ours(x), expected)


def caffe_side(side: int) -> int:
    """conv1 7/2/3 rounds down, pool1 3/2/1 rounds up but starts no window in the padding, res3 is 1x1/2."""
    side = (side + 6 - 7) // 2 + 1
    pooled = -(-(side + 2 - 3) // 2) + 1
    if (pooled - 1) * 2 >= side + 1:
        pooled -= 1
    return (pooled - 1) // 2 + 1


@pytest.mark.parametrize(("side", "score"), [(320, 41), (321, 41), (375, 48), (500, 63), (512, 65), (513, 65)])
def test_resnet_has_caffes_sizes(side, score):
    assert caffe_side(side) == score
    with torch.device("meta"), torch.no_grad():
        features = ResNet(50).eval()(torch.empty(1, 3, side, 64))
    assert features.shape == (1, 2048, score, caffe_side(64))


def test_floor_pooling_differs_where_the_facts_say():
    with torch.device("meta"), torch.no_grad():
        features = ResNet(50, ceil_pool=False).eval()(torch.empty(1, 3, 375, 512))
    assert features.shape[-2:] == (47, 64)


def test_resnet101_has_deeplab_v2s_holes_and_strides():
    with torch.device("meta"):
        backbone = ResNet(101)
    rates = [pair[0] for pair in dilations(backbone)]
    assert rates == [1] * 7 + [2] * 23 + [4] * 3
    assert all(stride == 1 for _, stride in dilations(backbone))  # res3's stride is on its 1x1s
    assert backbone.layer2[0].conv1.stride == backbone.layer2[0].downsample[0].stride == (2, 2)
    assert backbone.layer3[0].conv1.stride == backbone.layer4[0].conv1.stride == (1, 1)
    with torch.device("meta"):
        assert [rate for rate, _ in dilations(ResNet(101, 16))] == [1] * 30 + [2] * 3


UNKNOWN = [
    lambda: MobileNetV2(4),
    lambda: MobileNetV2(8, "valid"),
    lambda: ResNet(34),
    lambda: ResNet(50, 4),
    lambda: ResNet(50, 8, "5x5"),
]


@pytest.mark.parametrize("make", UNKNOWN)
def test_an_option_that_is_not_known_is_refused_with_what_is(make):
    with pytest.raises(ValueError, match="accepted"):
        make()


def test_weights_that_do_not_fit_are_refused_by_name(theirs):
    weights, keys = theirs.state_dict(), mobilenet_v2_keys()
    fewer = {key: value for key, value in weights.items() if key != "features.4.conv.2.weight"}
    with pytest.raises(WeightsError, match=r"features\.4\.project\.0\.weight missing"):
        load_backbone(MobileNetV2(), fewer, keys, ("classifier.",))
    with pytest.raises(WeightsError, match=r"classifier\.1\.weight unknown"):
        load_backbone(MobileNetV2(), weights, keys, ())
    with pytest.raises(WeightsError, match=r"features\.0\.0\.weight is \(16, 3, 3, 3\), not \(32, 3, 3, 3\)"):
        load_backbone(MobileNetV2(), {**weights, "features.0.0.weight": torch.zeros(16, 3, 3, 3)}, keys, ("classifier.",))


def test_a_weight_file_that_is_missing_or_a_pickle_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="none"):
        read_safetensors(tmp_path / "none.safetensors")
    torch.save({"a": torch.zeros(2)}, tmp_path / "pickle.safetensors")
    with pytest.raises(WeightsError, match="pickle"):
        read_safetensors(tmp_path / "pickle.safetensors")


@torch.no_grad()
def test_the_imagenet_weights_tell_cats_from_dogs(shared):
    backbone = MobileNetV2(32, "same").eval()
    weights = read_safetensors(shared / "weights" / "mobilenet_v2_imagenet.safetensors")
    load_backbone(backbone, weights, mobilenet_v2_keys(), ("classifier.",))
    pets = shared / "data" / "pets"
    stems = (pets / "test.txt").read_text().split()
    cats = [stem for stem in stems if stem[0].isupper()]  # breeds of cats are written with a capital
    dogs = [stem for stem in stems if not stem[0].isupper()]
    right = 0
    for stem in cats[:8] + dogs[:8]:
        picture = Image.open(pets / "images" / f"{stem}.jpg").convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
        features = backbone(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1)
        share = (weights["classifier.1.weight"] @ features.mean((2, 3))[0] + weights["classifier.1.bias"]).softmax(0)
        right += bool(share[281:286].sum() > share[151:269].sum()) == stem[0].isupper()
    assert right >= 14  # of 16
