"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381, Table 2) with holes instead of late strides."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from deeplab.convolutions.conv_norm import ConvBatchNorm

Padding = Literal["same", "symmetric"]

# expansion t, channels c, repeats n, stride s: arXiv 1801.04381, Table 2.
STAGES = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


def conv_bn_relu6(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, dilation: int = 1, padding: Padding = "same"
) -> ConvBatchNorm:
    """Convolution, batch norm, ReLU6. Submodule names 0, 1, 2 are torchvision's, so its weights fit."""
    same = stride == 2 and padding == "same"
    pad = 0 if same else dilation * (kernel - 1) // 2
    conv = nn.Conv2d(inputs, outputs, kernel, stride, pad, dilation, groups, bias=False)
    return ConvBatchNorm(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True), same=same)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 (linear), with a shortcut where the shapes allow one."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, dilation: int, padding: Padding) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_bn_relu6(inputs, hidden, 1))
        layers.append(conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden, dilation=dilation, padding=padding))
        self.conv = nn.Sequential(*layers)
        self.project = ConvBatchNorm(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.project(self.conv(x), x if self.shortcut else None)
        return y


class MobileNetV2(nn.Module):
    """MobileNetV2 1.0 without its classifier: B x 3 x H x W in, B x 1280 x h x w out.

    Keys are torchvision's (`features.N...`). Once `output_stride` is reached, further strides become dilations: the
    strided layer keeps the old dilation and later layers take the new one, so every kernel sees the positions that it
    saw in ImageNet training.

    `padding`: "same" is TensorFlow's, with which Google's weights were trained; "symmetric" is torchvision's. At the sizes
    of the predictor and the crops (8k + 1) every strided layer gets an odd side, for which both are equal.
    """

    channels = 1280

    def __init__(self, output_stride: int = 8, padding: Padding = "same") -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride {output_stride}: 8, 16 and 32 are accepted")
        if padding not in ("same", "symmetric"):
            raise ValueError(f"padding {padding!r}: 'same' and 'symmetric' are accepted")
        self.output_stride = output_stride
        layers: list[nn.Module] = [conv_bn_relu6(3, 32, 3, 2, padding=padding)]
        inputs, current, dilation = 32, 2, 1
        for expansion, outputs, repeats, first_stride in STAGES:
            for index in range(repeats):
                stride, block_dilation = (first_stride if index == 0 else 1), dilation
                if stride == 2 and current == output_stride:
                    stride, dilation = 1, dilation * 2
                else:
                    current *= stride
                layers.append(InvertedResidual(inputs, outputs, stride, expansion, block_dilation, padding))
                inputs = outputs
        layers.append(conv_bn_relu6(inputs, self.channels, 1))
        self.features = nn.Sequential(*layers)

    def layers(self) -> list[nn.Module]:
        """First convolution, 17 blocks, last convolution."""
        return list(self.features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.features(x)
        return features
