"""A network in int8: codes of weights and results, and the factors between them.

Weights: int8, one scale an output channel. Results: uint8, one scale and zero a tensor (`Quantization`); the ends of the codes are
ReLU's. Sums are exact, so every build gives the same codes; all numbers here come from float64 operations that round alike on
every processor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deeplab.errors import UserError
from deeplab.networks.network import Quantization
from deeplab.scoring.native.layers import Convolution, Layers, PoolingHead, Pyramid
from deeplab.scoring.native.program import (
    BlockParts,
    PoolingParts,
    Program,
    PyramidParts,
    floats,
    matrix,
    pooled_share,
    stem_matrix,
    taps_of,
)

KINDS = "MobileNetV2 networks with an ASPP or an image pooling head (mobilenet-v2-aspp, mobilenet-v2-image-pooling)"
Parts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
MOST_BIAS = 2.0**26  # of a bias in units of a sum, so that sums fit 32 bits


class Int8Error(UserError):
    """A network cannot be computed in int8, or photos give no ranges for it."""


@dataclass(frozen=True)
class Codes:
    """What the codes of a tensor mean: value = scale * (code - zero)."""

    scale: float
    zero: int


@dataclass(frozen=True)
class CodedConvolution:
    """weight: int8 codes in the convolution's shape, `step`: what they mean, an output channel; inputs: of the codes it reads."""

    weight: np.ndarray
    step: np.ndarray
    inputs: Codes

    def bias_codes(self, bias: np.ndarray) -> np.ndarray:
        """int32: the bias in units of a sum, without what the zero of the inputs adds to it."""
        own = np.rint(bias / (self.inputs.scale * self.step))
        codes: np.ndarray = own - self.inputs.zero * self.weight.astype(np.int64).reshape(len(self.weight), -1).sum(1)
        return codes.astype(np.int32)

    def parts(self, bias: np.ndarray, result: Codes, shortcut: Codes | None = None, *, stem: bool = False) -> Parts:
        """The arguments of the engine. Int8Error if a result might not fit 32 bits before it is cut to a code."""
        weight = matrix(stem_matrix(self.weight) if stem else self.weight)
        codes = self.bias_codes(bias)
        scale = (self.inputs.scale * self.step / result.scale).astype(np.float32)
        offset = np.full(len(scale), result.zero, np.float32)
        if shortcut:
            offset = np.full(len(scale), result.zero - shortcut.zero * shortcut.scale / result.scale, np.float32)
        sums = 255.0 * np.abs(weight.astype(np.float64)).sum(1) + np.abs(codes.astype(np.float64))
        if not (np.isfinite(scale).all() and (sums < 2.0**31).all() and (sums * scale + np.abs(offset) < 2.0**30).all()):
            raise Int8Error("int8: a layer's results do not fit 32 bits: the ranges are not this network's")
        return weight, codes, scale, offset


def coded(weight: np.ndarray, bias: np.ndarray, inputs: Codes) -> CodedConvolution:
    """Weights as codes: the largest of each output channel is 127, unless its bias would not fit then."""
    largest = np.abs(weight).reshape(len(weight), -1).max(1)
    step = np.maximum(np.maximum(largest, 1e-12) / 127, np.abs(bias) / (inputs.scale * MOST_BIAS))
    codes = np.clip(np.rint(weight / step[:, None, None, None]), -127, 127).astype(np.int8)
    return CodedConvolution(codes, step, inputs)


def border_of(layers: Layers) -> tuple[int, int, int]:
    """The pixel (R, G, B) nearest to the colour that normalises to zero."""
    red, green, blue = (int(np.rint(value)) for value in layers.normalization.mean)
    return red, green, blue


def coded_stem(layers: Layers, bias: np.ndarray) -> tuple[CodedConvolution, np.ndarray]:
    """The first convolution on pixels as they are, and its bias there. Its zero is 0: `border_of` is in the bias."""
    mean, deviation = np.array(layers.normalization.mean), np.array(layers.normalization.std)
    weight = layers.stem.weight / deviation[None, :, None, None]
    border = np.array(border_of(layers))
    at_border = bias + (weight * (border - mean)[None, :, None, None]).reshape(len(weight), -1).sum(1)
    convolution = coded(weight, at_border, Codes(1.0, 0))
    # Codes count from 0, and the border's are zero to the network.
    shift = (convolution.weight.astype(np.float64) * border[None, :, None, None]).reshape(len(weight), -1).sum(1)
    return convolution, at_border - shift * convolution.step


@dataclass
class Recorded:
    """A quantization by result and by bias, taken in the order of the layers."""

    quantization: Quantization
    results: int = 0
    biases: int = 0

    def codes(self) -> Codes:
        q, i = self.quantization, self.results
        if i >= len(q.scale):
            raise Int8Error("int8: these are ranges of another network: too few results")
        self.results += 1
        return Codes(float(q.scale[i]), int(q.zero[i]))

    def bias(self, count: int) -> np.ndarray:
        values = self.quantization.bias[self.biases : self.biases + count]
        if len(values) != count:
            raise Int8Error("int8: these are ranges of another network: too few biases")
        self.biases += count
        return values.astype(np.float64)

    def finish(self) -> None:
        if self.results != len(self.quantization.scale) or self.biases != len(self.quantization.bias):
            raise Int8Error("int8: these are ranges of another network: too many results or biases")


def int8_program(layers: Layers, quantization: Quantization) -> Program:
    """The network in int8. Int8Error if the quantization is not of a network of this shape."""
    rest = Recorded(quantization)

    def one(convolution: Convolution, inputs: Codes, shortcut: Codes | None = None) -> tuple[Parts, Codes]:
        bias = rest.bias(len(convolution.bias))
        result = rest.codes()
        return coded(convolution.weight, bias, inputs).parts(bias, result, shortcut), result

    stem, bias = coded_stem(layers, rest.bias(len(layers.stem.bias)))
    x = rest.codes()
    stem_parts = stem.parts(bias, x, stem=True)
    blocks = []
    for block in layers.blocks:
        hidden, expand = x, None
        if block.expand:
            expand, hidden = one(block.expand, x)
        depthwise, hidden = one(block.depthwise, hidden)
        shortcut = x if block.shortcut else None
        project, result = one(block.project, hidden, shortcut)
        by = x.scale / result.scale if block.shortcut else 0.0
        blocks.append(BlockParts(expand, depthwise, project, block.stride, block.rate, block.shortcut, by))
        x = result
    last = None
    if layers.last:
        last, x = one(layers.last, x)
    head = _pyramid(layers.head, x, rest) if isinstance(layers.head, Pyramid) else _pooling_head(layers.head, x, rest)
    rest.finish()
    return Program(stem_parts, np.empty((0,), np.float32), border_of(layers), layers.symmetric, tuple(blocks), last, head)


def _pyramid(head: Pyramid, x: Codes, rest: Recorded) -> PyramidParts:
    taps = taps_of(head)
    parts = coded(taps.weight, taps.bias, x).parts(taps.bias, Codes(1.0, 0))
    return PyramidParts(parts, head.rates, floats(rest.bias(len(head.branches[0].bias))))


def _pooling_head(head: PoolingHead, x: Codes, rest: Recorded) -> PoolingParts:
    """The pooled branch stays float; it is computed once an image."""
    pooling_bias = rest.bias(len(head.pooling.bias))
    bias = rest.bias(len(head.convolution.bias))
    between = rest.codes()
    convolution = coded(head.convolution.weight, bias, x).parts(bias, between)
    share, projection = pooled_share(head.project)
    bias = rest.bias(len(projection.bias))
    result = rest.codes()
    project = coded(projection.weight, bias, between).parts(bias, result)
    bias = rest.bias(len(head.score.bias))
    score = coded(head.score.weight, bias, result).parts(bias, Codes(1.0, 0))
    pooling = floats(head.pooling.weight[:, :, 0, 0].T), floats(pooling_bias), floats(share.T / result.scale), project[3]
    return PoolingParts(pooling, convolution, project, score, float(x.zero), x.scale)
