"""What the engine is given: a network's convolutions as arrays, in one number format; and the format bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from deeplab.networks.network import Normalization
from deeplab.scoring.batch_norm_folding import Convolution
from deeplab.scoring.int8.steps import taps
from deeplab.scoring.native.layers import Layers, Pyramid

if TYPE_CHECKING:
    from deeplab.scoring.native._mobilenet import Network, Parts

ACTIVATIONS = {"none": 0, "relu6": 1, "relu": 2}


@dataclass(frozen=True)
class BlockParts:
    """An inverted residual: arguments of `Network.add_block`."""

    expand: Parts | None
    depthwise: Parts
    project: Parts
    stride: int
    rate: int
    shortcut: bool
    shortcut_scale: float = 1.0


@dataclass(frozen=True)
class PyramidParts:
    """Arguments of `Network.add_aspp`."""

    taps: Parts
    rates: tuple[int, ...]
    bias: np.ndarray


@dataclass(frozen=True)
class PoolingParts:
    """Arguments of `Network.add_pooling_head`."""

    pooling: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    convolution: Parts
    project: Parts
    score: Parts
    zero: float = 0.0
    step: float = 1.0


@dataclass(frozen=True)
class Program:
    """A network. values, border: of `Network.add_stem`."""

    stem: Parts
    values: np.ndarray
    border: tuple[int, int, int]
    symmetric: bool
    blocks: tuple[BlockParts, ...]
    last: Parts | None
    head: PyramidParts | PoolingParts

    def load(self, network: Network) -> None:
        """Add all layers to an empty network of a build with this format."""
        network.add_stem(self.stem, values=self.values, border=list(self.border), symmetric=self.symmetric)
        for block in self.blocks:
            network.add_block(
                block.expand,
                block.depthwise,
                block.project,
                stride=block.stride,
                rate=block.rate,
                shortcut=block.shortcut,
                shortcut_scale=block.shortcut_scale,
            )
        if self.last is not None:
            network.add_last(self.last)
        head = self.head
        if isinstance(head, PyramidParts):
            network.add_aspp(head.taps, rates=list(head.rates), bias=head.bias)
        else:
            network.add_pooling_head(head.pooling, head.convolution, head.project, head.score, zero=head.zero, step=head.step)


def bfloat16_program(layers: Layers) -> Program:
    """The network in bfloat16: the engine rounds weights and results, sums in float32."""
    head = layers.head
    if isinstance(head, Pyramid):
        parts: PyramidParts | PoolingParts = PyramidParts(
            _parts(taps_of(head)), head.rates, floats(np.sum([branch.bias for branch in head.branches], axis=0))
        )
    else:
        pooled, rest = pooled_share(head.project)
        parts = PoolingParts(
            (floats(head.pooling.weight[:, :, 0, 0].T), floats(head.pooling.bias), floats(pooled.T), floats(head.project.bias)),
            _parts(head.convolution),
            _parts(rest),
            _parts(head.score),
        )
    return Program(
        _parts(Convolution(stem_matrix(layers.backbone.stem.weight), layers.backbone.stem.bias, "relu6")),
        meanings(layers.normalization),
        (0, 0, 0),
        layers.backbone.symmetric,
        tuple(
            BlockParts(
                _parts(block.expand) if block.expand else None,
                _parts(block.depthwise),
                _parts(block.project),
                block.stride,
                block.rate,
                block.shortcut,
            )
            for block in layers.backbone.blocks
        ),
        _parts(layers.backbone.last) if layers.backbone.last else None,
        parts,
    )


def meanings(normalization: Normalization) -> np.ndarray:
    """What the values 0..255 of R, G and B mean to the network: 3 x 256 float32."""
    values = normalization.apply(torch.arange(256).expand(3, 256).reshape(1, 3, 1, 256)).reshape(3, 256)
    return np.ascontiguousarray(values.numpy())


def stem_matrix(weight: np.ndarray) -> np.ndarray:
    """N x 3 x 3 x 3 -> N x 28 x 1 x 1: row, column, channel, and a zero."""
    flat = weight.transpose(0, 2, 3, 1).reshape(len(weight), 27)
    return np.concatenate([flat, np.zeros((len(flat), 1), flat.dtype)], axis=1)[:, :, None, None]


def taps_of(head: Pyramid) -> Convolution:
    """All taps of all branches as one 1x1 without bias: outputs by branch, row, column and class."""
    weight = taps([branch.weight for branch in head.branches])
    return Convolution(weight, np.zeros(len(weight)))


def pooled_share(project: Convolution) -> tuple[np.ndarray, Convolution]:
    """The weights of a projection for its pooled half, N x width, and the projection without them."""
    width = project.weight.shape[1] // 2
    return project.weight[:, :width, 0, 0], Convolution(project.weight[:, width:], project.bias, project.activation)


def floats(values: np.ndarray) -> np.ndarray:
    """Flat, contiguous float32."""
    return np.ascontiguousarray(values, np.float32).reshape(-1)


def matrix(weight: np.ndarray) -> np.ndarray:
    """A convolution's weights as the engine takes them: outputs x inputs, depthwise channels x 9."""
    return np.ascontiguousarray(weight.reshape(len(weight), -1))


def _parts(convolution: Convolution) -> Parts:
    weight = matrix(convolution.weight.astype(np.float32))
    return weight, floats(convolution.bias), ACTIVATIONS[convolution.activation]
