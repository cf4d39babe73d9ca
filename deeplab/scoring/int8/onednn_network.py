"""A network's steps in int8 through oneDNN's quantised convolutions, as torch has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, reduce

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from deeplab.convolutions.dilated import shifted
from deeplab.networks.network import Quantization, SegmentationNetwork, mixed_grids
from deeplab.scoring.batch_norm_folding import Convolution
from deeplab.scoring.int8.codes import (
    ONE,
    CodedConvolution,
    Codes,
    Recorded,
    as_pixels,
    bias_at_zero,
    border_of,
    coded,
    coded_over,
    coded_stem,
)
from deeplab.scoring.int8.steps import PIXELS, Branch, Convolved, ImageMean, MaxPool, Steps, taps

# oneDNN chooses the layout of packed weights by the shape of the map. The layout for a common photo serves all maps of at least
# SMALL positions; on smaller ones it has the weights laid out anew for each call, hundreds of times slower, so those have one of
# their own.
PHOTO = (377, 505)
SMALL_PHOTO = (49, 65)
SMALL = 80


@cache
def available() -> bool:
    """Whether this PyTorch has the convolutions, and adds up exactly on this processor.

    Without VNNI, oneDNN adds pairs of products in 16 bits, which two large ones do not fit: sums are up to 40 % too small.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.onednn, "qconv2d_pointwise"):
        return False
    codes = torch.full((1, 64, 9, 9), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    for kernel, rate in ((1, 1), (3, 1), (3, 2)):
        weight = np.full((16, 64, kernel, kernel), 127, np.int8)
        step = Convolved((PIXELS,), Convolution(weight, np.zeros(16)), rate=rate)
        convolution = PackedConvolution(CodedConvolution(weight, np.ones(16), ONE), np.zeros(16), None, [(9, 9)] * 2, step=step)
        if not bool((convolution(codes) == 255 * 127 * 64 * kernel**2).all()):
            return False
    return True


class PackedConvolution:
    """uint8 codes -> uint8 codes, or float32 values."""

    def __init__(
        self,
        convolution: CodedConvolution,
        bias: np.ndarray,
        result: Codes | None,
        maps: Sequence[tuple[int, int]],
        groups: int = 1,
        step: Convolved | None = None,
        shortcut: Codes | None = None,
    ) -> None:
        """bias: for codes that count from their zero. result: None for values. maps: sizes of the inputs that packs are made for.
        step: has stride, padding and rate, else those of a 1x1. shortcut: the codes of what is added.
        """
        if result:
            convolution.check(bias, result, shortcut.zero * shortcut.scale / result.scale if shortcut else 0.0)
        self.result, self.shortcut, self.inputs = result, shortcut, convolution.inputs
        stride, padding, rate = (step.stride, step.padding, step.rate) if step else (1, 0, 1)
        self.geometry = ([stride] * 2, [padding] * 2, [rate] * 2, groups)
        weight = torch.from_numpy(np.ascontiguousarray(convolution.weight))
        self.step = torch.from_numpy(convolution.step.astype(np.float32))
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.bias = torch.from_numpy(bias.astype(np.float32))
        inputs = self.inputs.scale, self.inputs.zero
        channels = weight.shape[1] * groups
        self.packs = [torch.ops.onednn.qconv_prepack(weight, self.step, *inputs, *self.geometry, [1, channels, *m]) for m in maps]

    def __call__(self, x: torch.Tensor, add: torch.Tensor | None = None, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x: B x K x H x W, channels innermost; add: codes that are added, which this overwrites; bias: instead of its own."""
        pack = self.packs[x.shape[-2] * x.shape[-1] < SMALL]
        own = self.bias if bias is None else bias
        source = (x, self.inputs.scale, self.inputs.zero, pack, self.step, self.zeros)
        result = (self.result.scale, self.result.zero, torch.uint8) if self.result else (1.0, 0, torch.float32)
        y: torch.Tensor  # ReLU is the cut to 0..255
        if add is None:
            y = torch.ops.onednn.qconv2d_pointwise(*source, own, *self.geometry, *result, "none", [], None)
        else:
            assert self.shortcut
            added = (self.shortcut.scale, self.shortcut.zero, "sum", 1.0)
            y = torch.ops.onednn.qconv2d_pointwise.binary(*source, add, own, *self.geometry, *result, *added, "none", [], None)
        return y


class OnednnNetwork(SegmentationNetwork):
    """A network in int8: the same scores up to the rounding of its codes, without gradients."""

    def __init__(self, network: SegmentationNetwork, steps: Steps, quantization: Quantization) -> None:
        """Int8Error if the quantization is not of a network of this shape."""
        nn.Module.__init__(self)
        self.__dict__.update(network.__dict__)  # geometry, classes and normalisation are the network's
        self.steps, self.unused = steps, steps.last_uses()
        self.border = torch.tensor(border_of(network.normalization), dtype=torch.uint8)
        self.convolutions: dict[int, PackedConvolution] = {}
        self.means: dict[int, tuple[np.ndarray, np.ndarray, Codes]] = {}
        self.scores: list[tuple[int, list[Branch], PackedConvolution]] = []
        self._prepare(Recorded(quantization))

    def _prepare(self, recorded: Recorded) -> None:
        """Codes and packs of every step."""
        codes: dict[int, Codes] = {}
        maps: dict[int, list[tuple[int, int]]] = {PIXELS: [PHOTO, SMALL_PHOTO]}
        channels = {PIXELS: 3}
        for number, step in enumerate(self.steps.steps, 1):
            if isinstance(step, Convolved):
                weight, bias = step.convolution.weight, recorded.bias(len(step.convolution.bias))
                result = recorded.codes()
                source = step.sources[0]
                if source == PIXELS:
                    convolution, at_border = coded_stem(weight, bias, self.normalization)
                    bias = bias_at_zero(convolution, at_border, self.normalization)
                    framed = [(height + 2 * step.padding, width + 2 * step.padding) for height, width in maps[PIXELS]]
                    maps[PIXELS], step = framed, replace(step, padding=0)  # it has its border already
                else:
                    convolution = coded_over(weight, bias, [codes[value] for value in step.sources])
                groups = sum(channels[value] for value in step.sources) // weight.shape[1]
                shortcut = None if step.shortcut is None else codes[step.shortcut]
                packed = PackedConvolution(convolution, bias, result, maps[source], groups, step, shortcut)
                self.convolutions[number] = packed
                codes[number], channels[number] = result, len(weight)
            elif isinstance(step, MaxPool):
                source = step.source
                codes[number], channels[number] = codes[source], channels[source]
            elif isinstance(step, ImageMean):
                bias = recorded.bias(len(step.convolution.bias))
                self.means[number] = (step.convolution.weight[:, :, 0, 0], bias, codes[step.source])
                continue
            else:
                total = recorded.bias(self.classes)
                for source, branches in step.by_source().items():
                    weight = taps([branch.convolution.weight for branch in branches])
                    bias = np.zeros(len(weight))
                    packed = PackedConvolution(coded(weight, bias, codes[source]), bias, None, maps[source])
                    self.scores.append((source, branches, packed))
                self.bias = torch.from_numpy(total.astype(np.float32)).view(1, -1, 1, 1)
                continue
            maps[number] = [(step.side(height), step.side(width)) for height, width in maps[source]]
        recorded.finish()

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """x: B x 3 x H x W, RGB pixels as uint8, or normalised as float32."""
        assert keep is None
        values = {PIXELS: as_pixels(x, self.normalization)}
        means: dict[int, np.ndarray] = {}
        for number, (step, unused) in enumerate(zip(self.steps.steps, self.unused, strict=True), 1):
            if isinstance(step, Convolved):
                values[number] = self._convolved(number, step, values, means, unused)
            elif isinstance(step, MaxPool):
                values[number] = max_pool(values[step.source], step)
            elif isinstance(step, ImageMean):
                means[number] = self._image_means(number, values[step.source])
            else:
                result = self._summed_scores(values)
            for value in unused:
                values.pop(value, None)
        return mixed_grids(result, self.grids)

    def _convolved(
        self, number: int, step: Convolved, values: dict[int, torch.Tensor], means: dict[int, np.ndarray], unused: set[int]
    ) -> torch.Tensor:
        inputs = [values[source] for source in step.sources]
        x = torch.cat(inputs, 1) if len(inputs) > 1 else inputs[0]
        if step.sources == (PIXELS,):
            x = self._bordered(x, step.padding)
        convolution = self.convolutions[number]
        if step.pooled:  # each image has a bias of its own
            value, weight = step.pooled
            shares = [torch.from_numpy((weight @ mean).astype(np.float32)) for mean in means[value]]
            parts = [convolution(image[None], bias=convolution.bias + share) for image, share in zip(x, shares, strict=True)]
            return torch.cat(parts) if len(parts) > 1 else parts[0]
        if step.shortcut is None:
            return convolution(x)
        add = values[step.shortcut]
        return convolution(x, add if step.shortcut in unused else add.clone())

    def _bordered(self, pixels: torch.Tensor, padding: int) -> torch.Tensor:
        """The image in a frame of the colour that is zero to the network."""
        batch, _, height, width = pixels.shape
        framed = self.border.expand(batch, height + 2 * padding, width + 2 * padding, 3).clone()
        framed[:, padding : padding + height, padding : padding + width] = pixels.permute(0, 2, 3, 1)
        return framed.permute(0, 3, 1, 2)

    def _image_means(self, number: int, x: torch.Tensor) -> np.ndarray:
        """B x N: sums of codes are exact, so an image's means do not depend on its batch."""
        weight, bias, codes = self.means[number]
        means = (x.sum((2, 3), dtype=torch.int64).numpy() / (x.shape[2] * x.shape[3]) - codes.zero) * codes.scale
        return np.stack([np.maximum(weight @ mean + bias, 0) for mean in means])

    def _summed_scores(self, values: dict[int, torch.Tensor]) -> torch.Tensor:
        total: torch.Tensor | None = None
        for source, branches, convolution in self.scores:
            maps = convolution(values[source]).contiguous()
            batch, _, *size = maps.shape
            if total is None:
                total = self.bias.repeat(batch, 1, *size)
            if branches[0].kernel == 1:
                total += maps.view(batch, len(branches), self.classes, *size).sum(1)
                continue
            rates = [branch.rate for branch in branches]
            for part, rows, columns in shifted(maps.view(batch, len(branches), 3, 3, self.classes, *size), rates):
                total[..., rows, columns] += part
        assert total is not None
        return total


def max_pool(x: torch.Tensor, step: MaxPool) -> torch.Tensor:
    """torch's max_pool2d of codes, which it refuses: the largest of strided views."""
    rows, columns = (step.side(length) for length in x.shape[-2:])
    bottom, right = (
        (count - 1) * step.stride + step.kernel - step.padding - length
        for count, length in zip((rows, columns), x.shape[-2:], strict=True)
    )
    y = F.pad(x.permute(0, 2, 3, 1), (0, 0, step.padding, right, step.padding, bottom))
    for dim, count in ((1, rows), (2, columns)):
        reach = (count - 1) * step.stride + 1
        views = [y.narrow(dim, i, reach) for i in range(step.kernel)]
        views = [view[:, :: step.stride] if dim == 1 else view[:, :, :: step.stride] for view in views]
        y = reduce(torch.maximum, views)
    return y.permute(0, 3, 1, 2)
