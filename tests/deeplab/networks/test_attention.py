"""Attention to Scale against LargeFOV written out at every scale, with weights and fusion by formula."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from deeplab.training.objective import training_loss
from deeplab.training.presets import TrainingConfig
from deeplab.zoo import build
from tests.deeplab.networks import reference
from tests.deeplab.networks.reference import LARGEFOV_BODY, SIZES
from tests.deeplab.networks.test_vgg import body_weights, pair


@torch.no_grad()
@pytest.mark.parametrize("scales", [(1.0, 0.75, 0.5), (1.0, 0.5)], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_attention_is_the_sum_of_the_scales_by_softmax_weights(size, scales, randomised, assert_close):
    network = randomised(build("vgg16-attention", 4, width=1 / 16, scales=scales))
    x, w = torch.randn(1, 3, *size), body_weights(network)
    w |= {"fc6": pair(network.backbone.fc.fc6), "fc7": pair(network.backbone.fc.fc7), "fc8": pair(network.head.score.score)}
    features, scores = [], []
    for scale in scales:
        rows, columns = (int((n - 1) * scale) + 1 for n in size)
        scaled = reference.interpolated(x, rows, columns, 1 / scale)
        top = reference.body(scaled, w, LARGEFOV_BODY)["pool5"]
        fc7 = reference.conv(reference.conv(top, w["fc6"], 1, 12, 12).relu(), w["fc7"]).relu()
        features.append(fc7)
        scores.append(reference.conv(fc7, w["fc8"]))
    grid = features[0].shape[-2:]
    aligned = [reference.interpolated(maps, *grid, scale) for maps, scale in zip(features, scales, strict=True)]
    attended = F.conv2d(torch.cat(aligned, 1), *pair(network.head.attend), padding=1).relu()
    energies = F.conv2d(attended, *pair(network.head.shares))
    weights = energies.exp() / energies.exp().sum(1, keepdim=True)
    expected = sum(
        weights[:, i : i + 1] * reference.interpolated(maps, *grid, scale)
        for i, (maps, scale) in enumerate(zip(scores, scales, strict=True))
    )
    assert_close(network(x), expected)


def test_extra_supervision_is_one_loss_for_the_fusion_and_one_for_each_scale(randomised):
    """At 33: 5 x 5 for the fusion and scale 1, 3 x 3 against every 16th label for 0.5, 0.75 brought to 5 x 5 first."""
    network = randomised(build("vgg16-attention", 3, width=1 / 16))
    x, labels = torch.randn(2, 3, 33, 33), torch.randint(0, 3, (2, 33, 33))
    labels[:, 8:20] = 255
    config = TrainingConfig("t", "vgg16-attention", loss="stride")
    with torch.no_grad():
        fused, scores = network.by_scale(x)
        loss = training_loss(network, x, labels, config)
    assert [tuple(s.shape[-2:]) for s in scores] == [(5, 5), (4, 4), (3, 3)]
    three_quarters = reference.interpolated(scores[1], 5, 5, 0.75)
    every_8th, every_16th = labels[:, ::8, ::8], labels[:, ::16, ::16]
    expected = sum(F.cross_entropy(s, every_8th, ignore_index=255) for s in (fused, scores[0], three_quarters))
    expected = expected + F.cross_entropy(scores[2], every_16th, ignore_index=255)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scales", [(0.5,), (1.0, 0.0), (1.0, 3.0), ()])
def test_scales_without_the_image_itself_are_refused(scales):
    with pytest.raises(ValueError, match="accepted"):
        build("vgg16-attention", 2, width=1 / 16, scales=scales)
