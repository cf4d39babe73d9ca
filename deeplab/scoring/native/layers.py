"""What a MobileNetV2 network consists of: its convolutions with folded batch norm, in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from deeplab.networks.deeplab_heads import ASPP
from deeplab.networks.image_pooling_head import ImagePoolingHead
from deeplab.networks.mobilenet import InvertedResidual, MobileNetV2
from deeplab.networks.network import Normalization, SegmentationNetwork
from deeplab.scoring.batch_norm_folding import Convolution, folded_convolution


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
class Backbone:
    """MobileNetV2. symmetric: its strided layers pad both sides, as torchvision's."""

    symmetric: bool
    stem: Convolution
    blocks: tuple[Block, ...]
    last: Convolution | None

    def convolutions(self) -> Iterator[Convolution]:
        yield self.stem
        for block in self.blocks:
            yield from block.convolutions()
        if self.last:
            yield self.last


@dataclass(frozen=True)
class Layers:
    """A network that the engine computes."""

    normalization: Normalization
    backbone: Backbone
    head: Pyramid | PoolingHead
    classes: int


def layers_of(network: SegmentationNetwork) -> Layers | None:
    """The layers of a network, whose batch norm may be folded already; None if it is not of the kind that the engine computes."""
    backbone, head = network.backbone, network.head
    if type(network) is not SegmentationNetwork or network.normalization.order != "RGB":
        return None
    if not isinstance(backbone, MobileNetV2) or not isinstance(head, ASPP | ImagePoolingHead):
        return None
    layers = backbone_of(backbone)
    if layers is None:
        return None
    return Layers(network.normalization, layers, _pyramid(head) if isinstance(head, ASPP) else _pooling(head), network.classes)


def backbone_of(backbone: MobileNetV2) -> Backbone | None:
    """The layers of a MobileNetV2; None if it has holes before its last stride."""
    stem, *rest = backbone.layers()
    blocks = [_block(module) for module in rest if isinstance(module, InvertedResidual)]
    after = [module for module in rest if not isinstance(module, InvertedResidual)]
    strided = [module[0] for module in backbone.modules() if hasattr(module, "same") and module[0].stride == (2, 2)]  # type: ignore[index]
    if len(after) > 1 or any(conv.dilation != (1, 1) for conv in strided):
        return None
    assert isinstance(stem, nn.Sequential) and all(isinstance(module, nn.Sequential) for module in after)
    return Backbone(
        any(conv.padding != (0, 0) for conv in strided),
        folded_convolution(stem[0], stem[1], "relu6"),
        tuple(blocks),
        folded_convolution(after[0][0], after[0][1], "relu6") if after else None,  # type: ignore[index]
    )


def _block(block: InvertedResidual) -> Block:
    *before, depthwise = block.conv
    conv = depthwise[0]  # type: ignore[index]
    return Block(
        folded_convolution(before[0][0], before[0][1], "relu6") if before else None,  # type: ignore[index]
        folded_convolution(conv, depthwise[1], "relu6"),  # type: ignore[index]
        folded_convolution(block.project[0], block.project[1]),
        int(conv.stride[0]),
        int(conv.dilation[0]),
        block.shortcut,
    )


def _pyramid(head: ASPP) -> Pyramid:
    return Pyramid(tuple(folded_convolution(branch, None) for branch in head.branches), head.rates)


def _pooling(head: ImagePoolingHead) -> PoolingHead:
    return PoolingHead(
        folded_convolution(head.pooling[1], head.pooling[2], "relu"),
        folded_convolution(head.conv[0], head.conv[1], "relu"),
        folded_convolution(head.project[0], head.project[1], "relu"),
        folded_convolution(head.score, None),
    )
