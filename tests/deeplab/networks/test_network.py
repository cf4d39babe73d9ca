from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deeplab.networks.network import CAFFE, TENSORFLOW, Normalization, resize_scores
from deeplab.zoo import ARCHITECTURES, build


@pytest.mark.parametrize(
    ("side", "lattice"), [(1, 1), (2, 9), (9, 9), (10, 17), (320, 321), (321, 321), (322, 329), (375, 377), (500, 505), (513, 513)]
)
def test_the_lattice_is_the_next_multiple_of_the_stride_plus_one(small_network, side, lattice):
    assert small_network().lattice_size(side) == lattice


def batch_norm_state(network: nn.Module) -> dict[str, torch.Tensor]:
    owners = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert owners
    return {k: v.clone() for k, v in network.state_dict().items() if k.rsplit(".", 1)[0] in owners}


def step(network: nn.Module) -> None:
    network.train()
    trainable = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        network(torch.randn(2, 3, 33, 33)).square().mean().backward()
        optimizer.step()


def test_a_frozen_batch_norm_survives_train_and_optimizer_steps(small_network):
    network = small_network()
    network.freeze_batch_norm()
    norms, weight = batch_norm_state(network), network.backbone.features[0].weight.detach().clone()
    step(network)
    assert not any(m.training for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert network.training
    for key, value in batch_norm_state(network).items():
        torch.testing.assert_close(value, norms[key], rtol=0, atol=0)
    assert not torch.equal(network.backbone.features[0].weight, weight)


def test_without_freezing_the_same_steps_move_the_batch_norm(small_network):
    network = small_network()
    norms = batch_norm_state(network)
    step(network)
    after = batch_norm_state(network)
    assert all(not torch.equal(after[key], norms[key]) for key in norms)


def test_a_copy_of_a_frozen_network_is_frozen(small_network):
    network = small_network()
    network.freeze_batch_norm()
    other = copy.deepcopy(network).train()
    assert not any(m.training for m in other.modules() if isinstance(m, nn.BatchNorm2d))


def test_normalization_is_the_convention_of_the_weights():
    pixels = torch.tensor([10, 100, 250], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(CAFFE.apply(pixels).flatten(), torch.tensor([250 - 103.939, 100 - 116.779, 10 - 123.68]))
    torch.testing.assert_close(TENSORFLOW.apply(pixels).flatten(), torch.tensor([10, 100, 250]) / 127.5 - 1)
    other = Normalization("RGB", (1.0, 2.0, 3.0), (2.0, 4.0, 8.0))
    torch.testing.assert_close(other.apply(pixels).flatten(), torch.tensor([4.5, 24.5, 247 / 8]))


@pytest.mark.parametrize("normalization", [CAFFE, TENSORFLOW])
def test_the_padding_colour_normalises_to_zero(normalization):
    colour = torch.tensor(normalization.mean_rgb).view(1, 3, 1, 1)
    assert float(normalization.apply(colour).abs().max()) < 1e-5


def test_resizing_scores_keeps_the_corners_where_they_are_aligned():
    ramp = torch.arange(5.0).view(1, 1, 1, 5).expand(1, 1, 3, 5)
    torch.testing.assert_close(resize_scores(ramp, (17, 33), True)[0, 0, 3], torch.linspace(0, 4, 33))
    torch.testing.assert_close(resize_scores(ramp, (6, 10), False), F.interpolate(ramp, (6, 10), mode="bilinear"))
    assert resize_scores(ramp, (3, 5), True) is ramp


@torch.no_grad()
@pytest.mark.parametrize("stride", [8, 16])
def test_the_zoos_mobilenet_scores_every_stride_pixels(stride):
    network = build("mobilenet-v2-aspp", 5, output_stride=stride).eval()
    assert network(torch.randn(1, 3, 65, 81)).shape == (1, 5, 64 // stride + 1, 80 // stride + 1)
    # The field of view in pixels stays when the stride changes.
    assert [rate * stride for rate in network.head.rates] == [48, 96, 144, 192]


@pytest.mark.parametrize(("name", "blocks"), [("resnet50-aspp", [3, 4, 6, 3]), ("resnet101-aspp", [3, 4, 23, 3])])
def test_the_zoos_resnets_have_the_papers_layers(name, blocks):
    with torch.device("meta"), torch.no_grad():
        network = build(name, 21).eval()
        assert network(torch.empty(1, 3, 321, 321)).shape == (1, 21, 41, 41)
    backbone = network.backbone
    assert [len(layer) for layer in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)] == blocks
    assert network.normalization == CAFFE


def test_an_unknown_architecture_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="nearest: resnet101-aspp"):
        build("resnet-101-aspp", 3)
    assert all(entry.source for entry in ARCHITECTURES.values())


def test_a_freshly_built_network_scores_all_classes_alike():
    """A head of N(0, 0.01) on few features: no class is preferred before training."""
    torch.manual_seed(0)
    with torch.no_grad():
        scores = build("mobilenet-v2-aspp", 4).eval()(torch.randn(1, 3, 33, 33)).numpy()
    assert np.abs(scores).max() < 1
