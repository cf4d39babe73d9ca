"""Losses on several scales, and what learns how fast."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from deeplab.training.objective import scaled_scores, sum_over_scales, training_loss
from deeplab.training.optimizer import parameter_groups
from deeplab.training.presets import PRESETS, TrainingConfig
from deeplab.zoo import build
from tests.deeplab.networks import reference

CONFIG = TrainingConfig("t", "small", loss="stride", objective="official")


@pytest.fixture
def labels() -> torch.Tensor:
    made = torch.from_numpy(np.random.default_rng(4).integers(0, 3, (2, 65, 65)))
    made[:, 10:30, 5:40] = 255
    return made


def test_msc_has_four_losses_each_against_the_labels_of_the_official_code(small_network, labels):
    """65 for 321: 9 x 9 against every 8th label, 5 x 5 (0.5) against every 16th, 7 x 7 (0.75) brought to 9 x 9 first."""
    network, x = small_network(), torch.randn(2, 3, 65, 65)
    with torch.no_grad():
        fused, scores = scaled_scores(network, x, (1.0, 0.75, 0.5))
        loss = training_loss(network, x, labels, CONFIG)
    assert [tuple(s.shape[-2:]) for s in (fused, *scores)] == [(9, 9), (9, 9), (7, 7), (5, 5)]
    images = [x, reference.interpolated(x, 49, 49, 4 / 3), reference.interpolated(x, 33, 33, 2)]
    with torch.no_grad():
        own = [network(image) for image in images]
    wide = [own[0], reference.interpolated(own[1], 9, 9, 0.75), reference.interpolated(own[2], 9, 9, 0.5)]
    torch.testing.assert_close(fused, torch.stack(wide).amax(0), rtol=1e-4, atol=1e-5)
    pairs = [(torch.stack(wide).amax(0), 8), (wide[0], 8), (wide[1], 8), (own[2], 16)]
    expected = sum(F.cross_entropy(s, labels[:, ::step, ::step], ignore_index=255) for s, step in pairs)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_at_321_the_scales_are_241_and_161_and_their_scores_31_and_21():
    with torch.device("meta"), torch.no_grad():
        network = build("resnet50-aspp", 21).eval()
        fused, scores = scaled_scores(network, torch.empty(1, 3, 321, 321), (1.0, 0.75, 0.5))
    assert [s.shape[-1] for s in (fused, *scores)] == [41, 41, 31, 21]


def test_kazutos_rule_gives_every_scale_its_own_labels_by_pillows_nearest(small_network, labels):
    """Nearest of areas: place i of n reads label floor((i + 0.5) * 65 / n)."""
    network, x = small_network(), torch.randn(2, 3, 65, 65)
    with torch.no_grad():
        fused, scores = scaled_scores(network, x, (1.0, 0.75, 0.5))
        loss = training_loss(network, x, labels, replace(CONFIG, objective="kazuto"))
    expected = torch.zeros(())
    for maps in (fused, *scores):
        n = maps.shape[-1]
        at = [int((i + 0.5) * 65 / n) for i in range(n)]
        expected = expected + F.cross_entropy(maps, labels[:, at][:, :, at], ignore_index=255)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert [int((i + 0.5) * 321 / 41) for i in range(3)] == [3, 11, 19]  # as the facts have it; the official reads 0, 8, 16


@pytest.mark.parametrize("rule", ["official", "kazuto"])
def test_ignored_pixels_have_no_gradient_at_any_scale(rule):
    fused, half = torch.randn(1, 3, 9, 9, requires_grad=True), torch.randn(1, 3, 5, 5, requires_grad=True)
    labels = torch.full((1, 65, 65), 255)
    labels[:, :33] = 1
    sum_over_scales(fused, [half], [0.5], labels, rule).backward()
    for maps, rows in ((fused, 5), (half, 3)):
        grad = maps.grad.abs().sum((0, 1, 3))
        assert not grad[rows:].any()
        assert grad[: rows - 1].all()


def test_without_normalisation_the_loss_is_the_sum_as_in_fcns_solver(small_network, labels):
    network, x = small_network(), torch.randn(2, 3, 65, 65)
    single = replace(CONFIG, objective="single")
    with torch.no_grad():
        mean, total = (training_loss(network, x, labels, replace(single, normalize=flag)) for flag in (True, False))
    valid = int((labels[:, ::8, ::8] != 255).sum())
    torch.testing.assert_close(total, mean * valid, rtol=1e-4, atol=1e-4)


def lr_by_name(network, config) -> dict[str, tuple[float, float]]:
    names = {id(p): name for name, p in network.named_parameters()}
    groups = parameter_groups(network, config)
    found = {names[id(p)]: (group["base_lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    return found


@pytest.mark.parametrize("name", ["vgg16-largefov", "vgg16-aspp-s", "vgg16-largefov-features"])
def test_vggs_rates_are_the_prototxts(name):
    """Weights 1, biases 2 without decay; fc8 (and what MSc adds) 10 and 20."""
    network = build(name, 3, width=1 / 32)
    rates = lr_by_name(network, replace(CONFIG, learning_rate=1e-3, head_multiplier=10.0, weight_decay=5e-4))
    assert set(rates) == {key for key, _ in network.named_parameters()}
    for key, (rate, decay) in rates.items():
        new = key.startswith("head.")
        assert rate == pytest.approx(1e-3 * (10 if new else 1) * (2 if key.endswith("bias") else 1))
        assert decay == (0 if key.endswith("bias") else 5e-4)
    assert any("fc6" in key and not key.startswith("head.") for key in rates)


def test_resnets_rates_are_the_prototxts_and_its_batch_norm_is_frozen():
    with torch.device("meta"):
        network = build("resnet50-aspp", 3)
        network.freeze_batch_norm()
    rates = lr_by_name(network, replace(CONFIG, learning_rate=2.5e-4, head_multiplier=10.0))
    assert {round(rate / 2.5e-4) for rate, _ in rates.values()} == {1, 10, 20}
    assert not any("bn" in key or "downsample.1" in key for key in rates)


def test_a_step_changes_no_frozen_norm_and_no_frozen_backbone(monkeypatch):
    from deeplab.networks import resnet as resnet_module

    monkeypatch.setitem(resnet_module.BLOCKS, 50, (1, 1, 1, 1))
    network = build("resnet50-largefov", 3, seed=0)
    network.freeze_batch_norm()
    network.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(parameter_groups(network, CONFIG), lr=1.0)
    training_loss(network, torch.randn(1, 3, 33, 33), torch.ones(1, 33, 33).long(), CONFIG).backward()
    optimizer.step()
    norms = {name for name, module in network.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    for key, value in network.state_dict().items():
        same = torch.equal(value, before[key])
        assert same == (key.rsplit(".", 1)[0] in norms), key


def test_mscs_preset_learns_only_what_is_new():
    config = PRESETS["vgg16-largefov-features-v1"]()
    network = build(config.architecture, 3, width=1 / 32)
    assert len(network.backbone.layers()) == config.frozen_layers
    for layer in network.backbone.layers():
        layer.requires_grad_(False)
    assert all(key.startswith("head.") for key in lr_by_name(network, config))


@pytest.mark.parametrize(
    "name", ["vgg16-largefov", "vgg16-aspp-l", "vgg16-largefov-features", "fcn8s", "deconvnet", "vgg16-attention"]
)
def test_every_kind_of_network_takes_a_training_step(name):
    network = build(name, 3, seed=1, width=1 / 32)
    network.train()
    config = TrainingConfig("t", name, dropout=0.1)
    x, labels = torch.randn(2, 3, 65, 65), torch.randint(0, 3, (2, 65, 65))
    optimizer = torch.optim.SGD(parameter_groups(network, config), lr=0.1)
    before = {key: p.detach().clone() for key, p in network.named_parameters() if p.requires_grad}
    for _ in range(2 if name.startswith("fcn") else 1):  # FCN's scores start at zero: its body learns from the second step
        optimizer.zero_grad()
        training_loss(network, x, labels, config).backward()
        optimizer.step()
    still = [key for key, p in network.named_parameters() if key in before and torch.equal(p, before[key])]
    assert not [key for key in still if key.endswith("weight")]
