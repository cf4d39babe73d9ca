"""Dilated convolutions rewritten as dense ones: the same sums, but faster on a CPU.

oneDNN's gradient of a dilated convolution takes five to ten times as long as that of a dense convolution of the same
size. A dilated convolution has a dense equivalent: the pixels of each phase (row mod rate, column mod rate) see only each
other, so the phases can be laid side by side as a batch and filtered densely. With few output classes the convolution
itself is slow, too, because oneDNN computes 16 channels at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F

# `summed_by_shifts` against the four branches of an ASPP head on 48 x 64 features, one core, ms in bfloat16: from 1280 channels
# to 3 classes 5 against 15, to 21 classes 31 against 30; from 2048 channels 7 against 82, and 48 against 161.
FEW_CLASSES = 32


def dense_gradients_pay(x: torch.Tensor) -> bool:
    """Whether the rewritten forms are faster because gradients are needed on a CPU."""
    return x.device.type == "cpu" and torch.is_grad_enabled()


def few_outputs(conv: nn.Module) -> bool:
    """Whether a dilated 3x3 convolution has so few outputs that `summed_by_shifts` is faster even without gradients."""
    return isinstance(conv, nn.Conv2d) and conv.dilation[0] > 1 and conv.kernel_size == (3, 3) and conv.out_channels <= FEW_CLASSES


def shifts_pay(x: torch.Tensor, conv: nn.Module) -> bool:
    """Whether `summed_by_shifts` is faster than `conv(x)`."""
    return (dense_gradients_pay(x) and isinstance(conv, nn.Conv2d)) or (x.device.type == "cpu" and few_outputs(conv))


def depthwise_by_phases(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, rate: int) -> torch.Tensor:
    """`F.conv2d(x, weight, bias, padding=rate, dilation=rate, groups=D)` for 3x3 kernels; x: B x D x H x W."""
    batch, channels, height, width = x.shape
    x = x.permute(0, 2, 3, 1)
    bottom, right = -height % rate, -width % rate
    if bottom or right:
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
    rows, columns = (height + bottom) // rate, (width + right) // rate
    x = x.reshape(batch, rows, rate, columns, rate, channels).permute(0, 2, 4, 1, 3, 5)
    x = x.reshape(batch * rate * rate, rows, columns, channels).permute(0, 3, 1, 2)
    x = F.conv2d(x, weight, bias, padding=1, groups=channels)
    x = x.permute(0, 2, 3, 1).reshape(batch, rate, rate, rows, columns, channels).permute(0, 3, 1, 4, 2, 5)
    x = x.reshape(batch, rows * rate, columns * rate, channels)[:, :height, :width]
    return x.permute(0, 3, 1, 2)


def summed_by_shifts(
    x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], rates: Sequence[int]
) -> torch.Tensor:
    """The sum over branches of `F.conv2d(x, weight, bias, padding=rate, dilation=rate)`, 3x3 kernels to few classes.

    One 1x1 convolution computes the contribution of every tap of every branch; these maps are then shifted into place and
    added. Without gradients the sum is float32, whatever the dtype of `x`.
    """
    batch, inputs, height, width = x.shape
    classes = weights[0].shape[0]
    taps = torch.cat([weight.permute(2, 3, 0, 1).reshape(-1, inputs) for weight in weights])
    maps = F.conv2d(x, taps[:, :, None, None]).contiguous().view(batch, len(rates), 3, 3, classes, height, width)
    # Added one by one: the gradients of a stacked sum would share memory, and a second pass would add to them twice.
    bias = biases[0]
    for other in biases[1:]:
        bias = bias + other
    total = bias.view(1, -1, 1, 1).expand(batch, classes, height, width)
    in_place = not torch.is_grad_enabled()
    if in_place:
        total = total.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    for part, rows, columns in shifted(maps, rates):
        if in_place:
            total[..., rows, columns] += part
        else:
            total = total + F.pad(part, (columns.start, width - columns.stop, rows.start, height - rows.stop))
    return total


def shifted(maps: torch.Tensor, rates: Sequence[int]) -> Iterator[tuple[torch.Tensor, slice, slice]]:
    """B x branches x 3 x 3 x C x h x w, what each tap of dilated 3x3 kernels adds -> parts of them, and where they are added."""
    height, width = maps.shape[-2:]
    for branch, rate in enumerate(rates):
        for i in range(3):
            for j in range(3):
                down, across = (i - 1) * rate, (j - 1) * rate
                if abs(down) >= height or abs(across) >= width:
                    continue  # this tap sees only padding
                part = maps[:, branch, i, j]
                part = part[..., max(0, down) : height + min(0, down), max(0, across) : width + min(0, across)]
                yield part, slice(max(0, -down), height - max(0, down)), slice(max(0, -across), width - max(0, across))
