"""A convolution with its batch norm, folded into one pass where the statistics are fixed."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from deeplab.convolutions.dilated import dense_gradients_pay, depthwise_by_phases
from deeplab.convolutions.onednn import FusedConv


def conv_norm(
    x: torch.Tensor, conv: nn.Module, norm: nn.Module, *, add: torch.Tensor | None = None, relu: bool = False
) -> torch.Tensor:
    """`relu(norm(conv(x)) + add)`; the addition and the activation are optional."""
    if isinstance(conv, FusedConv):
        fused: torch.Tensor = conv(x, add, relu)
        return fused
    y = _conv_norm(x, conv, norm)
    if add is not None:
        y = y + add
    return F.relu(y, inplace=True) if relu else y


def _conv_norm(x: torch.Tensor, conv: nn.Module, norm: nn.Module) -> torch.Tensor:
    """`norm(conv(x))`. In evaluation mode (or frozen) the norm is folded into the convolution's weight.

    The sums are the same, with one pass less over memory, and one less for the gradient in training. `norm` is an identity
    if it was folded permanently (`deeplab.scoring.batch_norm_folding`).
    """
    y: torch.Tensor
    if isinstance(norm, nn.Identity):
        y = conv(x)
        return y
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, _BatchNorm)
    if norm.training:
        y = norm(conv(x))
        return y
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    weight, bias = conv.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale
    rate = int(conv.dilation[0])
    if rate > 1 and conv.groups == conv.in_channels and dense_gradients_pay(x):
        return depthwise_by_phases(x, weight, bias, rate)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class ConvBatchNorm(nn.Sequential):
    """Convolution and batch norm (submodules 0 and 1), then any further modules (2: an activation).

    `same`: TensorFlow's "SAME" padding before a 3x3 stride-2 convolution: an even side is padded by one at its end only,
    an odd side by one at both ends, so that n becomes ceil(n / 2).
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, *rest: nn.Module, same: bool = False) -> None:
        super().__init__(conv, norm, *rest)
        self.same = same

    def forward(self, x: torch.Tensor, add: torch.Tensor | None = None) -> torch.Tensor:
        """`add`: a tensor to add to the norm's result."""
        conv, norm, *rest = self
        if self.same:
            height, width = x.shape[-2:]
            x = F.pad(x, (width % 2, 1, height % 2, 1))
        x = conv_norm(x, conv, norm, add=add)
        for module in rest:
            x = module(x)
        return x
