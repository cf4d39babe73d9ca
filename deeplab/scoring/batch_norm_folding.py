"""Folds every batch norm of a network into the convolution before it, for scoring only."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deeplab.networks.network import SegmentationNetwork

Activation = Literal["none", "relu6", "relu"]


@dataclass(frozen=True)
class Convolution:
    """weight: N x K x kernel x kernel or, depthwise, N x 1 x kernel x kernel; bias: N; both float64."""

    weight: np.ndarray
    bias: np.ndarray
    activation: Activation = "none"


def folded_convolution(conv: nn.Module, norm: nn.Module | None, activation: Activation = "none") -> Convolution:
    """A convolution with the batch norm that follows it, which may be folded already (an identity).

    In float64 with operations that round alike on every processor, so int8 weights are the same everywhere.
    """
    assert isinstance(conv, nn.Conv2d)
    weight = conv.weight.detach().cpu().double().numpy()
    bias = np.zeros(len(weight)) if conv.bias is None else conv.bias.detach().cpu().double().numpy()
    if isinstance(norm, nn.BatchNorm2d):
        assert norm.running_mean is not None and norm.running_var is not None
        mean, variance, gain, shift = (
            value.detach().cpu().double().numpy() for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        factor = gain / np.sqrt(variance + norm.eps)
        weight, bias = weight * factor[:, None, None, None], (bias - mean) * factor + shift
    return Convolution(weight, bias, activation)


def folded(network: SegmentationNetwork) -> SegmentationNetwork:
    """A copy in evaluation mode with the same scores; `network` is not changed.

    A convolution (or deconvolution) and the batch norm that directly follows it among a module's children form a pair, as
    in every backbone and head here. An identity replaces the norm; `conv_norm` recognises it.
    """
    twin = copy.deepcopy(network).eval()
    for module in twin.modules():
        for (first, conv), (second, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) and isinstance(norm, _BatchNorm):
                fused = fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d))
                setattr(module, first, fused)
                setattr(module, second, nn.Identity())
    return twin.requires_grad_(False)
