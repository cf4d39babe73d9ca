"""MobileNetV3-Large (Howard et al. 2019, arXiv 1905.02244, Table 1) with holes in its last three blocks, torchvision's keys."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

# kernel, expanded channels, output channels, squeeze-and-excite, hard-swish, stride: arXiv 1905.02244, Table 1.
BLOCKS = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)


def squeezed_channels(channels: int) -> int:
    """A quarter of the channels, rounded to a multiple of 8 and never down by more than a tenth."""
    rounded = max(8, (channels // 4 + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * (channels // 4) else rounded


class SqueezeExcite(nn.Module):
    """Weighs each channel by a function of all channels' means over the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed_channels(channels), 1)
        self.fc2 = nn.Conv2d(squeezed_channels(channels), channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights: torch.Tensor = F.hardsigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))
        return x * weights


def _unit(
    inputs: int, outputs: int, kernel: int, stride: int, rate: int, groups: int, activation: type[nn.Module] | None
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, rate * (kernel - 1) // 2, rate, groups, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(outputs, eps=0.001, momentum=0.01)]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class InvertedResidualV3(nn.Module):
    """Expand 1x1, depthwise, optional squeeze-and-excite, project 1x1; a shortcut if the shapes allow one."""

    def __init__(
        self, inputs: int, expanded: int, outputs: int, kernel: int, excite: bool, swish: bool, stride: int, rate: int
    ) -> None:
        super().__init__()
        activation: type[nn.Module] = nn.Hardswish if swish else nn.ReLU
        layers: list[nn.Module] = [_unit(inputs, expanded, 1, 1, 1, 1, activation)] if expanded != inputs else []
        layers.append(_unit(expanded, expanded, kernel, stride, rate, expanded, activation))
        layers += [SqueezeExcite(expanded)] if excite else []
        layers.append(_unit(expanded, outputs, 1, 1, 1, 1, None))
        self.block = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.block(x)
        return x + y if self.shortcut else y


class MobileNetV3(nn.Module):
    """B x 3 x H x W in, B x 960 x h x w out. Keys are torchvision's (`features.N...`).

    At `output_stride` 16 the last stride becomes rate 2, from its own block on.
    """

    channels = 960

    def __init__(self, output_stride: int = 16) -> None:
        super().__init__()
        if output_stride not in (16, 32):
            raise ValueError(f"output_stride {output_stride}: 16 and 32 are accepted")
        self.output_stride = output_stride
        layers: list[nn.Module] = [_unit(3, 16, 3, 2, 1, 1, nn.Hardswish)]
        inputs, current, rate = 16, 2, 1
        for kernel, expanded, outputs, excite, swish, stride in BLOCKS:
            if stride == 2 and current == output_stride:
                stride, rate = 1, 2
            current *= stride
            layers.append(InvertedResidualV3(inputs, expanded, outputs, kernel, excite, swish, stride, rate))
            inputs = outputs
        layers.append(_unit(inputs, self.channels, 1, 1, 1, 1, nn.Hardswish))
        self.features = nn.Sequential(*layers)

    def layers(self) -> list[nn.Module]:
        """First convolution, 15 blocks, last convolution."""
        return list(self.features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.features(x)
        return features
