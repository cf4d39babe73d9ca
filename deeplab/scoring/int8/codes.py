"""Codes of weights, pixels and results, and the factors between them.

Weights: int8, one scale an output channel. Results: uint8, one scale and zero a tensor (`Quantization`); the ends of the codes are
ReLU's. Sums are exact; all numbers here come from float64 operations that round alike on every processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from deeplab.errors import UserError
from deeplab.networks.network import Normalization, Quantization

MOST_BIAS = 2.0**26  # of a bias in units of a sum, so that sums fit 32 bits


class Int8Error(UserError):
    """A network cannot be computed in int8, or photos give no ranges for it."""


@dataclass(frozen=True)
class Codes:
    """What the codes of a tensor mean: value = scale * (code - zero)."""

    scale: float
    zero: int


ONE = Codes(1.0, 0)


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

    def check(self, bias: np.ndarray, result: Codes, offset: float = 0.0) -> None:
        """Int8Error if a result might not fit 32 bits before it is cut to a code. offset: what is added to the codes."""
        scale = (self.inputs.scale * self.step / result.scale).astype(np.float32)
        weights = np.abs(self.weight.astype(np.float64)).reshape(len(self.weight), -1).sum(1)
        sums = 255.0 * weights + np.abs(self.bias_codes(bias).astype(np.float64))
        if not (np.isfinite(scale).all() and (sums < 2.0**31).all() and (sums * scale + abs(offset) < 2.0**30).all()):
            raise Int8Error("int8: a layer's results do not fit 32 bits: the ranges are not this network's")


def coded(weight: np.ndarray, bias: np.ndarray, inputs: Codes) -> CodedConvolution:
    """Weights as codes: the largest of each output channel is 127, unless its bias would not fit then."""
    largest = np.abs(weight).reshape(len(weight), -1).max(1)
    step = np.maximum(np.maximum(largest, 1e-12) / 127, np.abs(bias) / (inputs.scale * MOST_BIAS))
    codes = np.clip(np.rint(weight / step[:, None, None, None]), -127, 127).astype(np.int8)
    return CodedConvolution(codes, step, inputs)


def coded_over(weight: np.ndarray, bias: np.ndarray, sources: Sequence[Codes]) -> CodedConvolution:
    """A convolution of several tensors of equally many channels, one after the other: their scales are in its weights.

    Int8Error unless their zeros are 0.
    """
    if len(sources) == 1:
        return coded(weight, bias, sources[0])
    if any(source.zero for source in sources):
        raise Int8Error("int8: these are ranges of another network: a result below zero before tensors are joined")
    scales = np.repeat([source.scale for source in sources], weight.shape[1] // len(sources))
    return coded(weight * scales[None, :, None, None], bias, ONE)


def border_of(normalization: Normalization) -> tuple[int, int, int]:
    """The pixel (R, G, B) nearest to the colour that normalises to zero."""
    red, green, blue = (int(np.rint(value)) for value in normalization.mean_rgb)
    return red, green, blue


def as_pixels(x: torch.Tensor, normalization: Normalization) -> torch.Tensor:
    """RGB pixels as they are, or the nearest ones to a normalised image: B x 3 x H x W uint8. A pixel is its own code."""
    return x if x.dtype == torch.uint8 else normalization.undo(x.float()).round_().clamp_(0, 255).to(torch.uint8)


def coded_stem(weight: np.ndarray, bias: np.ndarray, normalization: Normalization) -> tuple[CodedConvolution, np.ndarray]:
    """The first convolution (its weights for R, G, B) on pixels as they are, and its bias where all of them are `border_of`."""
    mean, deviation = np.array(normalization.mean_rgb), np.array(normalization.std_rgb)
    weight = weight / deviation[None, :, None, None]
    shift = (np.array(border_of(normalization)) - mean)[None, :, None, None]
    at_border = bias + (weight * shift).reshape(len(weight), -1).sum(1)
    return coded(weight, at_border, ONE), at_border


def bias_at_zero(stem: CodedConvolution, at_border: np.ndarray, normalization: Normalization) -> np.ndarray:
    """The stem's bias for codes that count from 0: the border's are zero to the network, and its share is in the bias."""
    border = np.array(border_of(normalization))[None, :, None, None]
    shift = (stem.weight.astype(np.float64) * border).reshape(len(stem.weight), -1).sum(1)
    bias: np.ndarray = at_border - shift * stem.step
    return bias


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
