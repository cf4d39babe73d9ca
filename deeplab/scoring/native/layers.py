"""What a MobileNetV2 network consists of: its convolutions with folded batch norm, in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from deeplab.networks.deeplab_heads import ASPP
from deeplab.networks.image_pooling_head import ImagePoolingHead
from deeplab.networks.mobilenet import InvertedResidual, MobileNetV2
from deeplab.networks.network import Normalization, SegmentationNetwork

Activation = Literal["none", "relu6", "relu"]


@dataclass(frozen=True)
class Convolution:
    """weight: N x K x 3 x 3, N x K x 1 x 1 or, depthwise, N x 1 x 3 x 3; bias: N; both float64."""

    weight: np.ndarray
    bias: np.ndarray
    activation: Activation = "none"


@dataclass(frozen=True)
class Block:
    """An inverted residual; `rate` is the depthwise convolution's."""

    expand: Convolution | None
    depthwise: Convolution
    project: Convolution
    stride: int
    rate: int
    shortcut: bool

    def convolutions(self) -> list[Convolution]:
        return [*([self.expand] if self.expand else []), self.depthwise, self.project]


@dataclass(frozen=True)
class Pyramid:
    """ASPP: 3x3 branches with these rates straight to class scores, summed."""

    branches: tuple[Convolution, ...]
    rates: tuple[int, ...]


@dataclass(frozen=True)
class PoolingHead:
    """Image pooling beside a 1x1, a 1x1 over both, a 1x1 to class scores."""

    pooling: Convolution
    convolution: Convolution
    project: Convolution
    score: Convolution


@dataclass(frozen=True)
class Layers:
    """A network. symmetric: its strided layers pad both sides, as torchvision's."""

    normalization: Normalization
    symmetric: bool
    stem: Convolution
    blocks: tuple[Block, ...]
    last: Convolution | None
    head: Pyramid | PoolingHead
    classes: int

    def backbone(self) -> Iterator[Convolution]:
        yield self.stem
        for block in self.blocks:
            yield from block.convolutions()
        if self.last:
            yield self.last


def layers_of(network: SegmentationNetwork) -> Layers | None:
    """The layers of a network, whose batch norm may be folded already; None if it is not of the kind that the engine computes.

    Batch norm is folded in float64 with operations that round alike on every processor, so int8 weights are the same everywhere.
    """
    backbone, head = network.backbone, network.head
    if type(network) is not SegmentationNetwork or network.normalization.order != "RGB":
        return None
    if not isinstance(backbone, MobileNetV2) or not isinstance(head, ASPP | ImagePoolingHead):
        return None
    stem, *rest = backbone.layers()
    blocks = [_block(module) for module in rest if isinstance(module, InvertedResidual)]
    after = [module for module in rest if not isinstance(module, InvertedResidual)]
    strided = [module[0] for module in backbone.modules() if hasattr(module, "same") and module[0].stride == (2, 2)]  # type: ignore[index]
    if len(after) > 1 or any(conv.dilation != (1, 1) for conv in strided):
        return None
    assert isinstance(stem, nn.Sequential) and all(isinstance(module, nn.Sequential) for module in after)
    return Layers(
        network.normalization,
        any(conv.padding != (0, 0) for conv in strided),
        _folded(stem[0], stem[1], "relu6"),
        tuple(blocks),
        _folded(after[0][0], after[0][1], "relu6") if after else None,  # type: ignore[index]
        _pyramid(head) if isinstance(head, ASPP) else _pooling(head),
        network.classes,
    )


def _block(block: InvertedResidual) -> Block:
    *before, depthwise = block.conv
    conv = depthwise[0]  # type: ignore[index]
    return Block(
        _folded(before[0][0], before[0][1], "relu6") if before else None,  # type: ignore[index]
        _folded(conv, depthwise[1], "relu6"),  # type: ignore[index]
        _folded(block.project[0], block.project[1]),
        int(conv.stride[0]),
        int(conv.dilation[0]),
        block.shortcut,
    )


def _pyramid(head: ASPP) -> Pyramid:
    return Pyramid(tuple(_folded(branch, None) for branch in head.branches), head.rates)


def _pooling(head: ImagePoolingHead) -> PoolingHead:
    return PoolingHead(
        _folded(head.pooling[1], head.pooling[2], "relu"),
        _folded(head.conv[0], head.conv[1], "relu"),
        _folded(head.project[0], head.project[1], "relu"),
        _folded(head.score, None),
    )


def _folded(conv: nn.Module, norm: nn.Module | None, activation: Activation = "none") -> Convolution:
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
