"""Attention to Scale (Chen, Yang, Wang, Xu, Yuille, arXiv 1511.03339): how much each scale counts, learnt per position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from deeplab.networks.deeplab_heads import Plain
from deeplab.networks.network import Normalization, SegmentationNetwork, scaled_channels
from deeplab.networks.resampling import resample
from deeplab.networks.vgg import initialised


class AttentionHead(nn.Module):
    """Scores of one scale (`score`), and the weights of all scales from their concatenated fc7 (`weigh`)."""

    def __init__(self, inputs: int, classes: int, scales: int) -> None:
        super().__init__()
        self.score = Plain(inputs, classes)
        self.attend = initialised(nn.Conv2d(inputs * scales, 512, 3, padding=1))
        self.shares = nn.Conv2d(512, scales, 1)
        nn.init.normal_(self.shares.weight, std=0.01)
        assert self.shares.bias is not None
        nn.init.zeros_(self.shares.bias)

    def weigh(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """One B x D x h x w per scale, all on one grid -> B x S x h x w, summing to 1 over S."""
        x = F.relu(self.attend(torch.cat(list(features), 1)), inplace=True)
        weights: torch.Tensor = self.shares(F.dropout(x, 0.5, self.training)).softmax(1)
        return weights


class AttentionToScale(SegmentationNetwork):
    """One network over several scales of an image; the fused scores are the scales' scores summed by learnt weights.

    Normalised B x 3 x H x W in, B x C x h x w on the grid of scale 1 out. Scaled images have (n - 1) s + 1 pixels a
    side, and maps are resampled to the grid with aligned corners (Caffe's Interp).
    """

    def __init__(
        self, backbone: nn.Module, classes: int, normalization: Normalization, scales: Sequence[float] = (1.0, 0.75, 0.5)
    ) -> None:
        if 1.0 not in scales or any(not 0 < scale <= 2 for scale in scales):
            raise ValueError(f"scales {tuple(scales)}: factors above 0 and at most 2 with 1 among them are accepted")
        head = AttentionHead(int(backbone.channels), classes, len(scales))  # type: ignore[arg-type]
        super().__init__(backbone, head, classes, normalization)
        self.scales = tuple(scales)

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        return self.by_scale(x, keep)[0]

    def by_scale(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The fused scores, and each scale's scores on its own grid, which have losses of their own in training."""
        height, width = x.shape[-2:]
        features = []
        for scale in self.scales:
            size = int((height - 1) * scale) + 1, int((width - 1) * scale) + 1
            scaled = x if scale == 1.0 else resample(x, size, 1 / scale).to(x.dtype)
            features.append(scaled_channels(self.backbone(scaled), keep))
        scores = [self.head.score(feature) for feature in features]  # type: ignore[operator]
        rows, columns = features[self.scales.index(1.0)].shape[-2:]

        def on_grid(maps: torch.Tensor, scale: float) -> torch.Tensor:
            return maps if scale == 1.0 else resample(maps, (rows, columns), scale).to(x.dtype)

        weights = self.head.weigh([on_grid(maps, scale) for maps, scale in zip(features, self.scales, strict=True)])  # type: ignore[operator]
        fused = torch.zeros_like(scores[self.scales.index(1.0)])
        for index, (maps, scale) in enumerate(zip(scores, self.scales, strict=True)):
            fused = fused + weights[:, index : index + 1] * on_grid(maps, scale)
        return fused, scores
