"""Dilated ResNet-50 and ResNet-101 (He et al. 2015), in the layout of Caffe and DeepLab v2."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from deeplab.convolutions.conv_norm import conv_norm

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Bottleneck(nn.Module):
    """1x1 reduce, dilated 3x3, 1x1 increase, plus the shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, stride_in: str, eps: float) -> None:
        super().__init__()
        outputs = width * self.expansion
        first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, second, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs, eps)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs, eps))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = conv_norm(x, self.conv1, self.bn1, relu=True)
        y = conv_norm(y, self.conv2, self.bn2, relu=True)
        if self.downsample is not None:
            conv, norm = self.downsample
            x = conv_norm(x, conv, norm)
        return conv_norm(y, self.conv3, self.bn3, add=x, relu=True)


class ResNet(nn.Module):
    """ResNet without its classifier: B x 3 x H x W in, B x 2048 x h x w out. Keys are torchvision's.

    The default is Caffe's layout, which DeepLab v2 uses: a stage's stride 2 on its first 1x1 convolutions
    (`stride_in="1x1"`; torchvision's weights need "3x3"), pool1 with ceil, batch-norm eps 1e-5 (1e-3 for weights that
    came through Keras), and dilation from the first block of a dilated stage on (`dilate_first=True`; torchvision's first
    block keeps the previous stage's rate). Output stride 8 gives res4 rate 2 and res5 rate 4; 16 gives res5 rate 2.
    """

    channels = 2048

    def __init__(
        self,
        depth: int = 101,
        output_stride: int = 8,
        stride_in: Literal["1x1", "3x3"] = "1x1",
        ceil_pool: bool = True,
        dilate_first: bool = True,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"depth {depth}: 50 and 101 are accepted")
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride {output_stride}: 8, 16 and 32 are accepted")
        if stride_in not in ("1x1", "3x3"):
            raise ValueError(f"stride_in {stride_in!r}: '1x1' and '3x3' are accepted")
        self.output_stride = output_stride
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64, eps)
        self.ceil_pool = ceil_pool
        inputs, current, dilation = 64, 4, 1
        stages = []
        for width, blocks, stage_stride in zip((64, 128, 256, 512), BLOCKS[depth], (1, 2, 2, 2), strict=True):
            stride, first_dilation = stage_stride, dilation
            if stride == 2 and current == output_stride:
                stride, dilation = 1, dilation * 2
                first_dilation = dilation if dilate_first else first_dilation
            current *= stride
            layers = []
            for index in range(blocks):
                rate = first_dilation if index == 0 else dilation
                layers.append(Bottleneck(inputs, width, stride if index == 0 else 1, rate, stride_in, eps))
                inputs = width * Bottleneck.expansion
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def layers(self) -> list[nn.Module]:
        """First convolution and its norm, then the four stages."""
        return [self.conv1, self.bn1, self.layer1, self.layer2, self.layer3, self.layer4]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = conv_norm(x, self.conv1, self.bn1, relu=True)
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=self.ceil_pool)
        features: torch.Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return features
