"""FCN-32s, 16s, 8s against the layer table and the arithmetic of pad 100."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deeplab.networks import fcn as fcn_module
from deeplab.networks.fcn import bilinear_kernel
from deeplab.zoo import build
from tests.deeplab.networks import reference
from tests.deeplab.networks.reference import FCN_BODY, SIZES, Place, Weights

NETS = {"fcn32s": (32, 1.0, 1.0), "fcn16s": (16, 1.0, 1.0), "fcn8s": (8, 1.0, 1.0), "fcn8s-at-once": (8, 0.01, 0.0001)}


def weights_of(network: nn.Module) -> Weights:
    names = [row[0] for row in FCN_BODY if row[0].startswith("conv")]
    convolutions = [module for module in network.backbone.features if isinstance(module, nn.Conv2d)]
    layers = dict(zip(names, convolutions, strict=True))
    layers |= {"fc6": network.backbone.fc.fc6, "fc7": network.backbone.fc.fc7, "score_fr": network.head.score_fr}
    layers |= {name: getattr(network.head, name) for name in ("score_pool4", "score_pool3") if getattr(network.head, name)}
    return {name: (layer.weight, layer.bias) for name, layer in layers.items()}


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", NETS)
def test_fcn_is_the_layer_table(name, size, randomised, assert_close):
    stride, *scales = NETS[name]
    network = randomised(build(name, 5, width=1 / 16))
    x = torch.randn(1, 3, *size)
    scores = network(x)
    assert scores.shape == (1, 5, *size)
    assert_close(scores, reference.fcn(x, weights_of(network), stride, (scales[0], scales[1])))


def test_crops_start_where_pad_100_puts_the_first_pixel():
    """From kernels, strides and pads alone; 19, 5 and 27, and 5, 9 and 31 are the released prototxts' offsets."""
    places = reference.fcn_places()
    fc7, image = places["fc7"], Place()
    assert fc7.deconv(64, 32).offset_to(image) == fcn_module.CROP_IMAGE[32] == 19
    half = fc7.deconv(4, 2)
    assert places["pool4"].offset_to(half) == fcn_module.CROP_POOL4 == 5
    assert half.deconv(32, 16).offset_to(image) == fcn_module.CROP_IMAGE[16] == 27
    quarter = half.deconv(4, 2)
    assert places["pool3"].offset_to(quarter) == fcn_module.CROP_POOL3 == 9
    assert quarter.deconv(16, 8).offset_to(image) == fcn_module.CROP_IMAGE[8] == 31


@pytest.mark.parametrize("side", [3, 4, 16, 32, 64])
def test_the_bilinear_kernel_is_surgerys(side):
    torch.testing.assert_close(bilinear_kernel(side), reference.bilinear(side))


def test_at_once_differs_from_staged_in_the_skips_scales_alone(randomised):
    staged, at_once = randomised(build("fcn8s", 3, width=1 / 16)), build("fcn8s-at-once", 3, width=1 / 16).eval()
    at_once.load_state_dict(staged.state_dict())
    x = torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        assert not torch.allclose(staged(x), at_once(x))
        at_once.head.scales = staged.head.scales
        torch.testing.assert_close(staged(x), at_once(x))


@torch.no_grad()
def test_a_stage_takes_over_the_coarser_net_and_starts_with_its_scores_smoothed(randomised):
    """The new skip's score is 0, so only the path of the upsampling differs."""
    coarse, fine = randomised(build("fcn32s", 3, width=1 / 16)), build("fcn16s", 3, width=1 / 16).eval()
    fine.load_stage(coarse)
    x = torch.randn(1, 3, 65, 65)
    assert torch.equal(fine.head.score_fr.weight, coarse.head.score_fr.weight)
    assert not fine.head.score_pool4.weight.any()
    deeper = build("fcn8s", 3, width=1 / 16).eval()
    deeper.load_stage(fine)
    a, b = fine(x), coarse(x)
    assert float((a - b).abs().mean()) < 0.1 * float(b.abs().mean())


def test_fixed_upsampling_is_not_learnt_and_learnt_upsampling_is():
    fixed, learnt = build("fcn8s", 3, width=1 / 16), build("fcn8s", 3, width=1 / 16, learn_upscore=True)
    assert not any(p.requires_grad for p in fixed.head.upscores.parameters())
    assert all(p.requires_grad for p in learnt.head.upscores.parameters())
    groups = [p for group in fixed.parameter_groups(1.0, 1.0, 0.0) for p in group["params"]]
    assert not {id(p) for p in fixed.head.upscores.parameters()} & {id(p) for p in groups}
