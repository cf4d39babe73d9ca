"""DeepLab v3 for phones: MobileNetV2 at stride 16 and a head of image pooling beside one 1x1 convolution, without a pyramid.

The network of Google's `mobilenet_v2_dm` checkpoints (arXiv 1801.04381, section 6.3: "without ASPP").
"""

from __future__ import annotations

import torch
from torch import nn

from deeplab.networks.deeplab_heads import score_layer
from deeplab.networks.mobilenet import MobileNetV2, Padding
from deeplab.networks.torchvision_heads import ImagePooling, conv_bn_relu


class ShortMobileNetV2(MobileNetV2):
    """MobileNetV2 without its last 1x1 convolution: B x 3 x H x W in, B x 320 x h x w out."""

    channels = 320

    def __init__(self, output_stride: int = 16, padding: Padding = "same") -> None:
        super().__init__(output_stride, padding)
        self.features = self.features[:-1]


class ImagePoolingHead(nn.Module):
    """B x D x h x w features -> B x C x h x w scores: image pooling and a 1x1, 256 channels each; a 1x1 over both; the classes."""

    def __init__(self, inputs: int, classes: int, width: int = 256) -> None:
        super().__init__()
        self.pooling = ImagePooling(inputs, width)
        self.conv = conv_bn_relu(inputs, width, 1)
        self.project = conv_bn_relu(2 * width, width, 1)
        self.score = score_layer(width, classes, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.score(self.project(torch.cat([self.pooling(x), self.conv(x)], 1)))
        return scores
