"""Losses. Pixels with label 255 never count."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

from deeplab.classes import IGNORE
from deeplab.networks.network import resize_scores

Resolution = Literal["full", "stride"]


def segmentation_loss(
    scores: torch.Tensor,
    labels: torch.Tensor,
    align_corners: bool = True,
    resolution: Resolution = "full",
    normalize: bool = True,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean cross-entropy over the labelled pixels of the whole batch (Caffe's VALID normalisation).

    scores: B x C x h x w logits. labels: B x H x W, 0..C-1 or 255 (ignored). With no labelled pixel the loss is 0.
    `resolution`: "full" upsamples the scores to H x W, as DeepLab v3 does; "stride" takes every s-th label instead, as
    DeepLab v1 and v2 do (Interp shrink 8 on 321 is exactly `label[::8, ::8]`). Without `normalize` the loss is the sum, as
    in FCN's solvers. `class_weights`: C factors of the pixels by their class; the divisor stays the number of pixels.
    """
    labels = labels.long()
    if resolution == "full":
        scores = resize_scores(scores, (labels.shape[1], labels.shape[2]), align_corners)
    else:
        labels = _at_scores(labels, (scores.shape[-2], scores.shape[-1]))
    total = F.cross_entropy(scores.float(), labels, class_weights, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1) if normalize else total


def labelled_pixels(labels: torch.Tensor, stride: int, resolution: Resolution = "full") -> int:
    """How many labels of B x H x W `segmentation_loss` counts for a network of this stride."""
    if resolution == "stride":
        height, width = labels.shape[1:]
        labels = _at_scores(labels, (-(-(height - 1) // stride) + 1, -(-(width - 1) // stride) + 1))
    return int((labels != IGNORE).sum())


def _at_scores(labels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The labels at the positions of h x w scores; ValueError if labels and scores have no common grid."""
    sides = tuple(labels.shape[1:])
    steps = [(side - 1) / max(1, score - 1) for side, score in zip(sides, size, strict=True)]
    labels = labels[:, :: max(1, int(steps[0])), :: max(1, int(steps[1]))]
    if tuple(labels.shape[1:]) != size or steps != [int(step) for step in steps]:
        raise ValueError(f"labels of {sides} do not lie on scores of {size}: sides of stride * k + 1 do")
    return labels
