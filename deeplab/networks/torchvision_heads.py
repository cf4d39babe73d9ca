"""DeepLab v3's head and FCN's convolutional head as in torchvision, with its keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from deeplab.convolutions.conv_norm import ConvBatchNorm


def conv_bn_relu(inputs: int, outputs: int, kernel: int, rate: int = 1) -> ConvBatchNorm:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=rate * (kernel - 1) // 2, dilation=rate, bias=False)
    return ConvBatchNorm(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class ImagePooling(nn.Sequential):
    """The mean over the whole map through a 1x1 convolution, spread over the map again (`convs.4`)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        super().__init__(nn.AdaptiveAvgPool2d(1), conv, nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means: torch.Tensor = super().forward(x)
        return means.expand(-1, -1, *x.shape[-2:])


class DeepLabV3ASPP(nn.Module):
    """ASPP of arXiv 1706.05587, section 3.3: 1x1, three dilated 3x3 and image pooling, 256 channels each, then a 1x1 over all."""

    def __init__(self, inputs: int, rates: Sequence[int], width: int = 256) -> None:
        super().__init__()
        branches: list[nn.Module] = [conv_bn_relu(inputs, width, 1)]
        branches += [conv_bn_relu(inputs, width, 3, rate) for rate in rates]
        self.convs = nn.ModuleList([*branches, ImagePooling(inputs, width)])
        self.project = nn.Sequential(*conv_bn_relu(width * len(self.convs), width, 1), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.project(torch.cat([branch(x) for branch in self.convs], 1))
        return features


class DeepLabV3Head(nn.Sequential):
    """B x D x h x w features -> B x C x h x w scores: the pyramid, a 3x3 convolution, a 1x1 to the classes."""

    def __init__(self, inputs: int, classes: int, rates: Sequence[int] = (12, 24, 36)) -> None:
        self.rates: tuple[int, ...]
        conv = nn.Conv2d(256, 256, 3, padding=1, bias=False)
        super().__init__(DeepLabV3ASPP(inputs, rates), conv, nn.BatchNorm2d(256), nn.ReLU(), nn.Conv2d(256, classes, 1))
        self.rates = tuple(rates)


class ConvolutionalFCNHead(nn.Sequential):
    """torchvision's `FCNHead`: 3x3 to a quarter of the channels, dropout 0.1, 1x1 to the classes. Not the FCN paper's."""

    def __init__(self, inputs: int, classes: int) -> None:
        width = inputs // 4
        conv = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        super().__init__(conv, nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(width, classes, 1))
