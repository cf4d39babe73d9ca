"""DeconvNet (Noh, Hong, Han, arXiv 1505.04366; prototxts of HyeonwooNoh/DeconvNet): VGG-16 and its mirror image."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from deeplab.networks.network import Normalization, SegmentationNetwork, scaled_channels
from deeplab.networks.vgg import STAGES, initialised

SIDE = 224  # the side of a proposal
# Output channels of each 3x3 transposed convolution, after each unpooling.
MIRROR = ((512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64, 64))

Switches = tuple[torch.Tensor, ...]


def _unit(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    return nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU(inplace=True))


def _deconv(inputs: int, outputs: int, kernel: int, padding: int) -> nn.Sequential:
    layer = nn.ConvTranspose2d(inputs, outputs, kernel, 1, padding)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return _unit(layer)


class DeconvNetBackbone(nn.Module):
    """VGG-16 with batch norm, fc6 (7x7) and fc7: B x 3 x H x W -> fc7 and the five pools' switches. H, W: 32k, 224 or more."""

    output_stride = 32

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        inputs, stages = 3, []
        for published, count in STAGES:
            channels, units = max(1, round(published * width)), []
            for _ in range(count):
                units.append(_unit(initialised(nn.Conv2d(inputs, channels, 3, padding=1))))
                inputs = channels
            stages.append(nn.Sequential(*units))
        self.stages = nn.ModuleList(stages)
        self.channels = max(1, round(4096 * width))
        self.fc6 = _unit(initialised(nn.Conv2d(inputs, self.channels, 7)))
        self.fc7 = _unit(initialised(nn.Conv2d(self.channels, self.channels, 1)))

    def layers(self) -> list[nn.Module]:
        """The convolutions with their norms, in order."""
        return [*(unit for stage in self.stages for unit in stage.children()), self.fc6, self.fc7]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Switches]:
        switches = []
        for stage in self.stages:
            x, indices = F.max_pool2d(stage(x), 2, 2, return_indices=True)
            switches.append(indices)
        return self.fc7(self.fc6(x)), tuple(switches)


class DeconvNetHead(nn.Module):
    """fc6-deconv, then unpooling by the switches and transposed convolutions, five times, then a 1x1 to the classes."""

    def __init__(self, classes: int, width: float = 1.0) -> None:
        super().__init__()
        inputs, stages = max(1, round(512 * width)), []
        self.fc6 = _deconv(max(1, round(4096 * width)), inputs, 7, 0)
        for widths in MIRROR:
            units = []
            for published in widths:
                channels = max(1, round(published * width))
                units.append(_deconv(inputs, channels, 3, 1))
                inputs = channels
            stages.append(nn.Sequential(*units))
        self.stages = nn.ModuleList(stages)
        self.score = nn.Conv2d(inputs, classes, 1)
        nn.init.normal_(self.score.weight, std=0.01)
        assert self.score.bias is not None
        nn.init.zeros_(self.score.bias)

    def forward(self, features: tuple[torch.Tensor, Switches]) -> torch.Tensor:
        x, switches = features
        x = self.fc6(x)
        for stage, indices in zip(self.stages, reversed(switches), strict=True):
            x = stage(F.max_unpool2d(x, indices, [2, 2], [2, 2]))
        scores: torch.Tensor = self.score(x)
        return scores


class DeconvNet(SegmentationNetwork):
    """DeconvNet: normalised B x 3 x H x W in, B x C x H x W scores out.

    The published net accepts 224 x 224 only. Other sizes are padded with zeros (the mean colour) to sides of 32k, at least
    224, and the scores are cropped. Batch norm is learnt (`learnt_norm`), unlike in the DeepLab nets.
    """

    learnt_norm = True

    def __init__(self, classes: int, normalization: Normalization, width: float = 1.0) -> None:
        super().__init__(DeconvNetBackbone(width), DeconvNetHead(classes, width), classes, normalization, stride=1)

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        height, width = x.shape[-2:]
        bottom, right = (max(SIDE, -(-side // 32) * 32) - side for side in (height, width))
        top, switches = self.backbone(F.pad(x, (0, right, 0, bottom)))
        scores: torch.Tensor = self.head((scaled_channels(top, keep), switches))
        return scores[..., :height, :width]
