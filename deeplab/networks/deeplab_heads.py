"""Heads: backbone features to class scores at the same stride."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from deeplab.convolutions.dilated import shifts_pay, summed_by_shifts


def score_layer(inputs: int, classes: int, kernel: int, rate: int) -> nn.Conv2d:
    """A class-score convolution with weights N(0, 0.01) and bias 0, as in the v1 and v2 prototxts."""
    layer = nn.Conv2d(inputs, classes, kernel, padding=rate * (kernel - 1) // 2, dilation=rate)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling as DeepLab v2 puts it on a ResNet (arXiv 1606.00915, section 3.2).

    One 3x3 convolution straight to class scores for each rate, with bias, and the scores summed
    (`fc1_voc12_c0..c3` in the released prototxt): B x D x h x w in, B x C x h x w out.
    """

    def __init__(self, inputs: int, classes: int, rates: Sequence[int] = (6, 12, 18, 24)) -> None:
        super().__init__()
        self.rates = tuple(rates)
        self.branches = nn.ModuleList(score_layer(inputs, classes, 3, rate) for rate in rates)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if shifts_pay(x, self.branches[0]):
            weights = [branch.get_parameter("weight") for branch in self.branches]
            biases = [branch.get_parameter("bias") for branch in self.branches]
            return summed_by_shifts(x, weights, biases, self.rates)
        scores: torch.Tensor = self.branches[0](x)
        for branch in self.branches[1:]:
            scores = scores + branch(x)
        return scores


class LargeFOV(nn.Module):
    """One 3x3 convolution with rate 12: DeepLab v2's LargeFOV on a ResNet (arXiv 1606.00915, Table 4)."""

    def __init__(self, inputs: int, classes: int, rate: int = 12) -> None:
        super().__init__()
        self.score = score_layer(inputs, classes, 3, rate)
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if shifts_pay(x, self.score):
            return summed_by_shifts(x, [self.score.get_parameter("weight")], [self.score.get_parameter("bias")], [self.rate])
        scores: torch.Tensor = self.score(x)
        return scores


class Plain(nn.Module):
    """One 1x1 convolution: the head without a wider field of view (arXiv 1606.00915, Table 4, first row)."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.score = score_layer(inputs, classes, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.score(x)
        return scores


class SummedScores(nn.Module):
    """fc8 of each branch of VGG's ASPP, the scores summed (arXiv 1606.00915, Fig. 7): features of every branch in."""

    def __init__(self, inputs: int, classes: int, branches: int) -> None:
        super().__init__()
        self.scores = nn.ModuleList(score_layer(inputs, classes, 1, 1) for _ in range(branches))

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        total: torch.Tensor = self.scores[0](features[0])
        for score, branch in zip(self.scores[1:], features[1:], strict=True):
            total = total + score(branch)
        return total


class FeatureBranches(nn.Module):
    """DeepLab v1's MSc: scores from fc7, the image and the first four pools, summed (arXiv 1412.7062, section 3.2).

    A branch is a 3x3 and a 1x1 convolution to 128 channels, each with ReLU and dropout 0.5, then a 1x1 to the classes;
    their sum equals one 1x1 over the concatenation. Strides 8, 4, 2, 1, 1 bring all to fc7's grid. Sides other than 8k + 1,
    for which the released net is not defined, are padded with zeros at the bottom and the right.
    """

    strides = (8, 4, 2, 1, 1)

    def __init__(self, inputs: int, classes: int, tapped: Sequence[int] = (3, 64, 128, 256, 512), width: int = 128) -> None:
        super().__init__()
        self.score = score_layer(inputs, classes, 1, 1)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width, 3, stride, 1),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
                nn.Conv2d(width, width, 1),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
                score_layer(width, classes, 1, 1),
            )
            for channels, stride in zip(tapped, self.strides, strict=True)
        )

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        top, *taps = features
        total: torch.Tensor = self.score(top)
        height, width = top.shape[-2:]
        for branch, tap, stride in zip(self.branches, taps, self.strides, strict=True):
            bottom, right = (height - 1) * stride + 1 - tap.shape[-2], (width - 1) * stride + 1 - tap.shape[-1]
            total = total + branch(F.pad(tap, (0, max(0, right), 0, max(0, bottom))))
        return total
