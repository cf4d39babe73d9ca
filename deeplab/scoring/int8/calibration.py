"""Finds what a network needs for int8 from a few photos: the ranges of its results, and biases without the mean error of the codes.

Each convolution is computed twice, in float32 and from codes; the mean difference of an output channel goes into its bias before
the next layer is looked at. On `pets`, 99.05 % of the labels are float32's without that, and 99.66 % with it. Ranges are from
smallest to largest: cut at the 99.99th percentile they fail on photos of another kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F

from deeplab.networks.network import Quantization, SegmentationNetwork
from deeplab.scoring.batch_norm_folding import Convolution
from deeplab.scoring.int8.codes import CodedConvolution, Codes, Int8Error, border_of, coded, coded_over, coded_stem
from deeplab.scoring.int8.networks import KINDS, steps_of
from deeplab.scoring.int8.steps import PIXELS, Branch, Convolved, ImageMean, MaxPool, Scores, Steps, taps

MOST_PHOTOS = 12  # whose results are in memory twice; 2 photos already give 99.63 % of the labels, 24 gave 99.66 %
MOST_SIDE = 513  # pixels of a photo that are used, from its middle


@dataclass
class _Value:
    """A result for one photo: in float32, and as codes, which count from their zero here (float32, too)."""

    exact: torch.Tensor
    codes: torch.Tensor


@dataclass
class _Found:
    scale: list[float] = field(default_factory=list)
    zero: list[int] = field(default_factory=list)
    bias: list[np.ndarray] = field(default_factory=list)

    def quantization(self) -> Quantization:
        scale, zero = np.array(self.scale, np.float32), np.array(self.zero, np.uint8)
        return Quantization(scale, zero, np.concatenate(self.bias).astype(np.float32))


def calibrated(network: SegmentationNetwork, photos: Sequence[np.ndarray]) -> Quantization:
    """The quantization of a network from H x W x 3 uint8 RGB photos, of which at most MOST_PHOTOS are used, evenly.

    Int8Error for another kind of network than `steps_of` accepts, without photos, and if results are not finite.
    """
    steps = steps_of(network)
    if steps is None:
        raise Int8Error(f"int8: {KINDS} are accepted; this network is of another kind")
    if not photos:
        raise Int8Error("int8: no photos: a few that resemble those to segment are needed")
    count = min(MOST_PHOTOS, len(photos))
    chosen = [photos[i * len(photos) // count] for i in range(count)]
    with torch.inference_mode():
        return _Calibration(steps, [_on_lattice(network, photo) for photo in chosen]).run()


def _on_lattice(network: SegmentationNetwork, photo: np.ndarray) -> _Value:
    """The codes of pixels count from the border's, so that padding is zero."""
    normalization = network.normalization
    top, left = (max(0, (side - MOST_SIDE) // 2) for side in photo.shape[:2])
    photo = photo[top : top + MOST_SIDE, left : left + MOST_SIDE]
    height, width = (network.lattice_size(side) for side in photo.shape[:2])
    border = border_of(normalization)
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = border
    pixels[: photo.shape[0], : photo.shape[1]] = photo
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    exact = normalization.apply(x)
    if normalization.order == "BGR":
        exact = exact.flip(1)
    codes = x.float() - torch.tensor(border, dtype=torch.float32).view(1, 3, 1, 1)
    return _Value(exact.contiguous(memory_format=torch.channels_last), codes.contiguous(memory_format=torch.channels_last))


class _Calibration:
    """One pass over the steps with all photos."""

    def __init__(self, steps: Steps, photos: list[_Value]) -> None:
        self.steps, self.found = steps, _Found()
        self.photos: list[dict[int, _Value]] = [{PIXELS: photo} for photo in photos]
        self.codes: dict[int, Codes] = {}

    def run(self) -> Quantization:
        for number, (step, unused) in enumerate(zip(self.steps.steps, self.steps.last_uses(), strict=True), 1):
            if isinstance(step, Convolved):
                self._convolution(number, step)
            elif isinstance(step, MaxPool):
                self._max_pool(number, step)
            elif isinstance(step, ImageMean):
                self._image_mean(number, step)
            else:
                self._scores(step)
            for photo in self.photos:
                for value in unused:
                    del photo[value]
        return self.found.quantization()

    def _convolution(self, number: int, step: Convolved) -> None:
        """Range, bias and results of one convolution."""
        results = [self._exact(photo, step) for photo in self.photos]
        codes = self.codes[number] = self._range(results)
        convolution, bias = self._coded(step, step.convolution.bias)
        sums = [self._sums(photo, step, convolution) for photo in self.photos]
        coded_results = self._cut(sums, bias, convolution, codes)
        error = _mean_error(results, coded_results, codes)
        again, bias = self._coded(step, step.convolution.bias + error)
        if not np.array_equal(again.step, convolution.step):  # a bias that did not fit
            sums = [self._sums(photo, step, again) for photo in self.photos]
        coded_results = self._cut(sums, bias, again, codes)
        self.found.bias.append(step.convolution.bias + error)
        for photo, exact, code in zip(self.photos, results, coded_results, strict=True):
            photo[number] = _Value(exact, code)

    def _exact(self, photo: dict[int, _Value], step: Convolved) -> torch.Tensor:
        x = torch.cat([photo[source].exact for source in step.sources], 1)
        y = _convolved(x, step.convolution.weight, step) + _column(step.convolution.bias)
        if step.shortcut is not None:
            y += photo[step.shortcut].exact
        if step.pooled:
            y += _share(photo[step.pooled[0]].exact, step.pooled[1])
        return _activated(y, step.convolution)

    def _coded(self, step: Convolved, bias: np.ndarray) -> tuple[CodedConvolution, np.ndarray]:
        """The convolution as codes, and its bias for codes that count from their zero."""
        if step.sources == (PIXELS,):
            return coded_stem(step.convolution.weight, bias, self.steps.normalization)
        return coded_over(step.convolution.weight, bias, [self.codes[source] for source in step.sources]), bias

    def _sums(self, photo: dict[int, _Value], step: Convolved, convolution: CodedConvolution) -> torch.Tensor:
        """What a convolution adds up from codes, without its bias, as values."""
        x = torch.cat([photo[source].codes for source in step.sources], 1)
        y = _convolved(x, convolution.weight, step) * _column(convolution.inputs.scale * convolution.step)
        if step.shortcut is not None:
            y += photo[step.shortcut].codes * self.codes[step.shortcut].scale
        if step.pooled:
            y += _share(photo[step.pooled[0]].codes, step.pooled[1])
        return y

    def _cut(self, sums: list[torch.Tensor], bias: np.ndarray, convolution: CodedConvolution, codes: Codes) -> list[torch.Tensor]:
        """Codes of a result, counted from its zero, as they are rounded in scoring."""
        unit = convolution.inputs.scale * convolution.step
        column = _column(np.rint(bias / unit) * unit)
        values = (((y + column) / codes.scale).add_(codes.zero).round_() for y in sums)
        return [code.clamp_(0, 255).sub_(codes.zero) for code in values]

    def _range(self, results: list[torch.Tensor]) -> Codes:
        ends = np.array([[float(y.min()), float(y.max())] for y in results])
        low, high = min(0.0, float(ends[:, 0].min())), max(1e-6, float(ends[:, 1].max()))
        if not np.isfinite(ends).all():
            raise Int8Error("int8: a layer's results are not finite: the network or a photo is damaged")
        scale = float(np.float32((high - low) / 255))
        codes = Codes(scale, int(np.rint(-low / scale)))
        self.found.scale.append(codes.scale)
        self.found.zero.append(codes.zero)
        return codes

    def _max_pool(self, number: int, step: MaxPool) -> None:
        self.codes[number] = self.codes[step.source]
        for photo in self.photos:
            x = photo[step.source]
            exact, codes = (
                F.max_pool2d(values, step.kernel, step.stride, step.padding, ceil_mode=step.ceil) for values in (x.exact, x.codes)
            )
            photo[number] = _Value(exact, codes)

    def _image_mean(self, number: int, step: ImageMean) -> None:
        """It stays float; it is computed once an image."""
        self.found.bias.append(step.convolution.bias)
        scale = self.codes[step.source].scale
        weight = torch.from_numpy(step.convolution.weight[:, :, 0, 0].astype(np.float32))
        bias = torch.from_numpy(step.convolution.bias.astype(np.float32))
        for photo in self.photos:
            x = photo[step.source]
            exact, coded_mean = ((values.mean((2, 3)) @ weight.T + bias).relu_() for values in (x.exact, x.codes * scale))
            photo[number] = _Value(exact, coded_mean)

    def _scores(self, step: Scores) -> None:
        error = np.zeros(len(step.bias()))
        for source, branches in step.by_source().items():
            own = _coded_branches(branches, self.codes[source])
            for photo in self.photos:
                x = photo[source]
                for branch, weight in zip(branches, own, strict=True):
                    difference = _convolved(x.exact, branch.convolution.weight, branch) - _convolved(x.codes, weight, branch)
                    error += difference.double().mean((0, 2, 3)).numpy() / len(self.photos)
        self.found.bias.append(step.bias() + error)


def _coded_branches(branches: Sequence[Branch], inputs: Codes) -> list[np.ndarray]:
    """What the codes of the branches' taps mean, times the scale of their inputs: weights again, in the branches' shapes."""
    weight = taps([branch.convolution.weight for branch in branches])
    convolution = coded(weight, np.zeros(len(weight)), inputs)
    values = convolution.weight[:, :, 0, 0] * (convolution.step * inputs.scale)[:, None]
    kernels, start = [], 0
    for branch in branches:
        shape = branch.convolution.weight.shape
        rows = shape[0] * branch.kernel**2
        part = values[start : start + rows].reshape(branch.kernel, branch.kernel, *shape[:2])
        kernels.append(part.transpose(2, 3, 0, 1))
        start += rows
    return kernels


def _convolved(x: torch.Tensor, weight: np.ndarray, step: Convolved | Branch) -> torch.Tensor:
    kernel = torch.from_numpy(np.ascontiguousarray(weight, np.float32)).contiguous(memory_format=torch.channels_last)
    groups = x.shape[1] // weight.shape[1]
    if isinstance(step, Branch):
        return F.conv2d(x, kernel, None, 1, step.kernel // 2 * step.rate, step.rate, groups)
    return F.conv2d(x, kernel, None, step.stride, step.padding, step.rate, groups)


def _column(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32)).view(1, -1, 1, 1)


def _share(means: torch.Tensor, weight: np.ndarray) -> torch.Tensor:
    return (means @ torch.from_numpy(weight.astype(np.float32)).T)[..., None, None]


def _activated(y: torch.Tensor, convolution: Convolution) -> torch.Tensor:
    return y.clamp_(0, 6) if convolution.activation == "relu6" else y.relu_() if convolution.activation == "relu" else y


def _mean_error(results: list[torch.Tensor], coded_results: list[torch.Tensor], codes: Codes) -> np.ndarray:
    """The mean over positions and photos of what is missing in each channel."""
    errors = [(y - code * codes.scale).double().mean((0, 2, 3)).numpy() for y, code in zip(results, coded_results, strict=True)]
    mean: np.ndarray = np.mean(errors, axis=0)
    return mean
