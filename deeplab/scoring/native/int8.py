"""A network in int8, as the engine takes it. All builds give the same codes, since sums are exact and there is one rounding."""

from __future__ import annotations

import numpy as np

from deeplab.networks.network import Quantization
from deeplab.scoring.batch_norm_folding import Convolution
from deeplab.scoring.int8.codes import ONE, CodedConvolution, Codes, Recorded, bias_at_zero, border_of, coded, coded_stem
from deeplab.scoring.native.layers import Layers, PoolingHead, Pyramid
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

Parts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def int8_program(layers: Layers, quantization: Quantization) -> Program:
    """The network in int8. Int8Error if the quantization is not of a network of this shape."""
    rest = Recorded(quantization)

    def one(convolution: Convolution, inputs: Codes, shortcut: Codes | None = None) -> tuple[Parts, Codes]:
        bias = rest.bias(len(convolution.bias))
        result = rest.codes()
        return _parts(coded(convolution.weight, bias, inputs), bias, result, shortcut), result

    stem, at_border = coded_stem(layers.backbone.stem.weight, rest.bias(len(layers.backbone.stem.bias)), layers.normalization)
    x = rest.codes()
    stem_parts = _parts(stem, bias_at_zero(stem, at_border, layers.normalization), x, stem=True)
    blocks = []
    for block in layers.backbone.blocks:
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
    if layers.backbone.last:
        last, x = one(layers.backbone.last, x)
    head = _pyramid(layers.head, x, rest) if isinstance(layers.head, Pyramid) else _pooling_head(layers.head, x, rest)
    rest.finish()
    return Program(
        stem_parts,
        np.empty((0,), np.float32),
        border_of(layers.normalization),
        layers.backbone.symmetric,
        tuple(blocks),
        last,
        head,
    )


def _pyramid(head: Pyramid, x: Codes, rest: Recorded) -> PyramidParts:
    taps = taps_of(head)
    parts = _parts(coded(taps.weight, taps.bias, x), taps.bias, ONE)
    return PyramidParts(parts, head.rates, floats(rest.bias(len(head.branches[0].bias))))


def _pooling_head(head: PoolingHead, x: Codes, rest: Recorded) -> PoolingParts:
    """The pooled branch stays float; it is computed once an image."""
    pooling_bias = rest.bias(len(head.pooling.bias))
    bias = rest.bias(len(head.convolution.bias))
    between = rest.codes()
    convolution = _parts(coded(head.convolution.weight, bias, x), bias, between)
    share, projection = pooled_share(head.project)
    bias = rest.bias(len(projection.bias))
    result = rest.codes()
    project = _parts(coded(projection.weight, bias, between), bias, result)
    bias = rest.bias(len(head.score.bias))
    score = _parts(coded(head.score.weight, bias, result), bias, ONE)
    pooling = floats(head.pooling.weight[:, :, 0, 0].T), floats(pooling_bias), floats(share.T / result.scale), project[3]
    return PoolingParts(pooling, convolution, project, score, float(x.zero), x.scale)


def _parts(
    convolution: CodedConvolution, bias: np.ndarray, result: Codes, shortcut: Codes | None = None, *, stem: bool = False
) -> Parts:
    """The arguments of the engine. Int8Error if a result might not fit 32 bits before it is cut to a code."""
    offset = result.zero - shortcut.zero * shortcut.scale / result.scale if shortcut else float(result.zero)
    convolution.check(bias, result, offset)
    scale = (convolution.inputs.scale * convolution.step / result.scale).astype(np.float32)
    weight = matrix(stem_matrix(convolution.weight) if stem else convolution.weight)
    return weight, convolution.bias_codes(bias), scale, np.full(len(scale), offset, np.float32)
