"""Rewritten convolutions against torch's own, in float64 so that only a wrong sum can differ."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from deeplab.convolutions.conv_norm import ConvBatchNorm, conv_norm
from deeplab.convolutions.dilated import depthwise_by_phases, summed_by_shifts
from deeplab.networks.deeplab_heads import ASPP, LargeFOV, Plain
from tests.examples import examples

SIDES = st.integers(1, 13)


def gradients(result: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(99)
    return torch.autograd.grad((result * torch.randn(result.shape, dtype=result.dtype)).sum(), inputs)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, *inputs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients(ours, *inputs), gradients(theirs, *inputs), strict=True):
        torch.testing.assert_close(mine, other)


@settings(max_examples=examples(40))
@given(height=SIDES, width=SIDES, rate=st.integers(1, 6), batch=st.integers(1, 3))
def test_depthwise_by_phases_is_the_dilated_convolution(height, width, rate, batch):
    torch.manual_seed(0)
    x = torch.randn(batch, 5, height, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    ours = depthwise_by_phases(x, weight, bias, rate)
    assert_same(ours, F.conv2d(x, weight, bias, padding=rate, dilation=rate, groups=5), x, weight, bias)


@settings(max_examples=examples(30))
@given(height=SIDES, width=SIDES, rates=st.lists(st.integers(1, 26), min_size=1, max_size=4))
def test_summed_by_shifts_is_the_sum_of_the_branches(height, width, rates):
    torch.manual_seed(0)
    x = torch.randn(2, 7, height, width, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(3, 7, 3, 3, dtype=torch.float64, requires_grad=True) for _ in rates]
    biases = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in rates]
    branches = zip(weights, biases, rates, strict=True)
    expected = sum(F.conv2d(x, weight, bias, padding=rate, dilation=rate) for weight, bias, rate in branches)
    assert isinstance(expected, torch.Tensor)
    assert_same(summed_by_shifts(x, weights, biases, rates), expected, x, *weights, *biases)
    with torch.inference_mode():  # another way, whose sum is float32
        torch.testing.assert_close(summed_by_shifts(x, weights, biases, rates), expected.float())


def layer(rate: int, stride: int, groups: int, channels: int = 6) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    torch.manual_seed(rate + stride + groups)
    conv = nn.Conv2d(channels, channels, 3, stride, rate, rate, groups, bias=False)
    norm = nn.BatchNorm2d(channels, eps=1e-3)
    for tensor in (norm.weight, norm.running_var):
        nn.init.uniform_(tensor, 0.2, 2)  # type: ignore[arg-type]
    for tensor in (norm.bias, norm.running_mean):
        nn.init.normal_(tensor)  # type: ignore[arg-type]
    return conv.double(), norm.double()


@pytest.mark.parametrize(("rate", "stride"), [(1, 1), (1, 2), (2, 1), (4, 1)])
@pytest.mark.parametrize("groups", [1, 6])
def test_a_folded_norm_is_the_norm_after_the_convolution(rate, stride, groups):
    conv, norm = layer(rate, stride, groups)
    norm.eval()
    x = torch.randn(2, 6, 11, 14, dtype=torch.float64, requires_grad=True)
    assert_same(conv_norm(x, conv, norm), norm(conv(x)), x, conv.weight, norm.weight, norm.bias)
    with torch.no_grad():
        torch.testing.assert_close(conv_norm(x, conv, norm), norm(conv(x)))


def test_a_norm_in_training_mode_uses_and_updates_batch_statistics():
    conv, norm = layer(1, 1, 1)
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64)
    before = norm.running_mean.clone()
    y = conv_norm(x, conv, norm.train())
    flat = (y - norm.bias.view(1, -1, 1, 1)) / norm.weight.view(1, -1, 1, 1)
    torch.testing.assert_close(flat.mean((0, 2, 3)), torch.zeros(6, dtype=torch.float64), atol=1e-9, rtol=0)
    assert not torch.equal(norm.running_mean, before)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 8), (9, 7), (1, 2), (321, 320)])
def test_same_padding_is_tensorflows_arithmetic(height, width):
    """TensorFlow's rule: ceil(n / 2) outputs, max(0, (outputs - 1) * 2 + 3 - n) zeros, the smaller half in front."""
    conv = nn.Conv2d(2, 2, 3, 2, 0, bias=False)
    block = ConvBatchNorm(conv, nn.BatchNorm2d(2), same=True).eval()
    x = torch.randn(1, 2, height, width)
    pads = []
    for side in (width, height):
        total = max(0, (-(-side // 2) - 1) * 2 + 3 - side)
        pads += [total // 2, total - total // 2]
    expected = F.conv2d(F.pad(x, pads), conv.weight, stride=2)
    assert expected.shape[-2:] == (-(-height // 2), -(-width // 2))
    torch.testing.assert_close(block(x), expected / (1 + 1e-5) ** 0.5)


def test_the_heads_score_as_their_layers_do():
    torch.manual_seed(0)
    x = torch.randn(1, 5, 9, 10)
    head = ASPP(5, 4, (1, 2, 3))
    for branch in head.branches:
        nn.init.normal_(branch.bias)
    expected = sum(F.conv2d(x, b.weight, b.bias, padding=r, dilation=r) for b, r in zip(head.branches, (1, 2, 3), strict=True))
    torch.testing.assert_close(head(x), expected, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(head(x), expected, rtol=1e-4, atol=1e-6)
    wide = LargeFOV(5, 4)
    torch.testing.assert_close(wide(x), F.conv2d(x, wide.score.weight, wide.score.bias, padding=12, dilation=12))
    plain = Plain(5, 4)
    torch.testing.assert_close(plain(x), F.conv2d(x, plain.score.weight, plain.score.bias))


def test_heads_start_as_the_released_prototxt_says():
    head = ASPP(256, 21)
    assert head.rates == (6, 12, 18, 24)
    assert len(head.branches) == 4
    for branch in head.branches:
        assert abs(float(branch.weight.detach().std()) - 0.01) < 0.001
        assert not branch.bias.any()
