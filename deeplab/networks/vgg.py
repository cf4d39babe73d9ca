"""Convolutional, dilated VGG-16 (Simonyan & Zisserman, arXiv 1409.1556, column D) as in DeepLab v1 and v2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions before each max pool


def initialised(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with He et al. 2015's weights, which keep the signal's size through a ReLU, and bias 0."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def filled(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with weights N(0, 0.005) and bias 0.1: Caffe's fillers of fc6 and fc7 (`bvlc_alexnet/train_val.prototxt`).

    Features of ImageNet weights are of the order of ten and more. Weights that keep this size end in NaN at the papers' rate.
    """
    nn.init.normal_(layer.weight, std=0.005)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, 0.1)
    return layer


class VGG16(nn.Module):
    """The 13 convolutions: B x 3 x H x W in, pool5 (B x 512 x h x w) out. Keys are torchvision's, `features.N`.

    With dilation (the default) pools are 3/2/1, the last two with stride 1, conv5 has rate 2, and 8k + 1 pixels become
    k + 1 features (prototxt `vgg128_noup`). `output_stride=16` keeps pool4's stride and conv5 dense. Without dilation
    (`output_stride=32`) pools are 2/2/0, as in FCN. `ceil_pool`: Caffe's rounding. `average`: pool5a, the 3x3 average
    after pool5, which the released v1 nets have and the v2 nets do not. `first_padding`: FCN's conv1_1 pads 100. `width`:
    share of the published channels, also in fc6 and fc7; below 1 it gives the same geometry for small data and tests.
    """

    def __init__(
        self,
        output_stride: int = 8,
        ceil_pool: bool = True,
        average: bool = False,
        first_padding: int = 1,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < width <= 1:
            raise ValueError(f"width {width}: above 0 and at most 1 is accepted")
        self.widths = [max(1, round(channels * width)) for channels, _ in STAGES]
        self.channels = self.widths[-1]
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride {output_stride}: 8, 16 and 32 are accepted")
        self.output_stride = output_stride
        layers: list[nn.Module] = []
        inputs, current, rate = 3, 1, 1
        for channels, (_, count) in zip(self.widths, STAGES, strict=True):
            for _ in range(count):
                padding = first_padding if not layers else rate
                layers += [initialised(nn.Conv2d(inputs, channels, 3, 1, padding, rate)), nn.ReLU(inplace=True)]
                inputs = channels
            if output_stride == 32:
                layers.append(nn.MaxPool2d(2, 2, ceil_mode=ceil_pool))
                continue
            stride = 2 if current < output_stride else 1
            layers.append(nn.MaxPool2d(3, stride, 1, ceil_mode=ceil_pool))
            current *= stride
            # Rate 2 keeps conv5's field of view without pool4's stride; fc6's rate makes up for pool5's.
            rate = 2 if stride == 1 else 1
        if average:
            layers.append(nn.AvgPool2d(3, 1, 1))
        self.features = nn.Sequential(*layers)

    def layers(self) -> list[nn.Module]:
        """The convolutions, in order."""
        return [module for module in self.modules() if isinstance(module, nn.Conv2d)]

    def pools(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The outputs of the five pools; the last one after pool5a if there is one."""
        pools = []
        for module in self.features:
            x = module(x)
            if isinstance(module, nn.MaxPool2d):
                pools.append(x)
        return [*pools[:-1], x]

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        features: torch.Tensor = self.features(x)
        return features


class FullyConnected(nn.Module):
    """fc6 and fc7 as convolutions, each with ReLU and dropout 0.5: B x D x h x w in, B x filters x h x w out.

    The effective kernel of `rate * (kernel - 1) + 1` is odd in all the papers' variants; padding keeps h x w.
    """

    def __init__(self, inputs: int, filters: int, kernel: int, rate: int, padding: int | None = None) -> None:
        super().__init__()
        padding = rate * (kernel - 1) // 2 if padding is None else padding
        self.fc6 = filled(nn.Conv2d(inputs, filters, kernel, 1, padding, rate))
        self.fc7 = filled(nn.Conv2d(filters, filters, 1))
        self.dropout = 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(F.relu(self.fc6(x), inplace=True), self.dropout, self.training)
        return F.dropout(F.relu(self.fc7(x), inplace=True), self.dropout, self.training)


class VGG16FullyConvolutional(VGG16):
    """VGG-16 up to fc7 at the stride of pool5: v1's 7x7, 4x4 and LargeFOV, by `kernel`, `rate` and `filters` of fc6.

    `taps` returns fc7 with the normalised image and the first four pools, for v1's MSc head.
    """

    def __init__(
        self,
        kernel: int = 3,
        rate: int = 12,
        filters: int = 1024,
        output_stride: int = 8,
        ceil_pool: bool = True,
        average: bool = False,
        taps: bool = False,
        width: float = 1.0,
    ) -> None:
        super().__init__(output_stride, ceil_pool, average, width=width)
        filters = max(1, round(filters * width))
        self.fc = FullyConnected(self.channels, filters, kernel, rate * 8 // output_stride)
        self.channels = filters
        self.taps = taps

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        pools = self.pools(x)
        top = self.fc(pools[-1])
        return (top, x, *pools[:4]) if self.taps else top


class VGG16Pyramid(VGG16):
    """VGG-16 with one fc6-fc7 branch for each rate: v2's ASPP (arXiv 1606.00915, Fig. 7). One fc7 per branch comes out."""

    def __init__(self, rates: Sequence[int], output_stride: int = 8, ceil_pool: bool = True, width: float = 1.0) -> None:
        super().__init__(output_stride, ceil_pool, width=width)
        filters = max(1, round(1024 * width))
        self.branches = nn.ModuleList(FullyConnected(self.channels, filters, 3, rate * 8 // output_stride) for rate in rates)
        self.channels = filters

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        top = self.features(x)
        return tuple(branch(top) for branch in self.branches)
