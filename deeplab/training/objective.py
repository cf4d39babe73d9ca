"""What a training step minimises: one loss, or one for every scale and one for their fusion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from deeplab.networks.attention import AttentionToScale
from deeplab.networks.network import SegmentationNetwork
from deeplab.networks.resampling import resample
from deeplab.training.losses import segmentation_loss
from deeplab.training.presets import TrainingConfig


def training_loss(
    network: SegmentationNetwork,
    x: torch.Tensor,
    labels: torch.Tensor,
    config: TrainingConfig,
    keep: torch.Tensor | None = None,
    share: float = 1.0,
) -> torch.Tensor:
    """Normalised B x 3 x H x W and B x H x W labels (255 ignored) -> the loss that `config` selects.

    `keep`: B x D factors of the backbone's channels (dropout). `share`: the fraction of the labelled pixels of a larger
    batch that these crops hold; the losses of its parts then add up to its loss. With a loss per scale that is exact only
    if each scale's labels are distributed over the parts like all labels.
    """
    weights = torch.tensor(config.class_weights, device=x.device) if config.class_weights else None
    if isinstance(network, AttentionToScale):
        fused, scores = network.by_scale(x, keep)
        loss = sum_over_scales(fused, scores, network.scales, labels, config.objective, config.normalize, weights)
    elif config.objective == "single":
        loss = segmentation_loss(network(x, keep), labels, network.align_corners, config.loss, config.normalize, weights)
    else:
        fused, scores = scaled_scores(network, x, config.loss_scales, keep)
        loss = sum_over_scales(fused, scores, config.loss_scales, labels, config.objective, config.normalize, weights)
    return loss * share if config.normalize else loss


def scaled_scores(
    network: SegmentationNetwork, x: torch.Tensor, scales: Sequence[float], keep: torch.Tensor | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """MSC (arXiv 1606.00915, section 4.1.2): the per-position maximum on the grid of scale 1, and each scale's own scores.

    A side of n pixels becomes (n - 1) s + 1 (Caffe's Interp): 321 becomes 241 and 161, with scores of 31 and 21. All
    scales share the weights.
    """
    height, width = x.shape[-2:]
    scores = []
    for scale in scales:
        size = int((height - 1) * scale) + 1, int((width - 1) * scale) + 1
        scores.append(network(x if scale == 1.0 else resample(x, size, 1 / scale), keep))
    grid = (height - 1) // network.stride + 1, (width - 1) // network.stride + 1
    fused = torch.stack([on_grid(maps, scale, grid) for maps, scale in zip(scores, scales, strict=True)]).amax(0)
    return fused, scores


def on_grid(scores: torch.Tensor, scale: float, grid: tuple[int, int]) -> torch.Tensor:
    """Scores of a scaled image on the grid of the image itself: position i is read at i * scale."""
    return scores if scale == 1.0 else resample(scores, grid, scale)


def sum_over_scales(
    fused: torch.Tensor,
    scores: Sequence[torch.Tensor],
    scales: Sequence[float],
    labels: torch.Tensor,
    rule: str,
    normalize: bool = True,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss of the fused scores plus that of every scale, each against the labels that the code named by `rule` used.

    "official" (and "single", for networks with no other choice): every 8th label for the fusion and scale 1; a scale whose
    step 8 / s is whole is compared with every (8 / s)-th label (0.5: 21 x 21 against `label[::16]`); any other is first
    resampled to the grid (0.75: zoom 4, shrink 3, from 31 to 41). "kazuto": every scale at its own size, with labels
    resized by Pillow's nearest, which reads 3, 11, ... where the official code reads 0, 8, ...
    """
    losses = [
        kazuto_loss(fused, labels, normalize, class_weights)
        if rule == "kazuto"
        else segmentation_loss(fused, labels, True, "stride", normalize, class_weights)
    ]
    for maps, scale in zip(scores, scales, strict=True):
        if rule == "kazuto":
            losses.append(kazuto_loss(maps, labels, normalize, class_weights))
            continue
        height, width = labels.shape[-2:]
        whole = all((side - 1) % (n - 1) == 0 for side, n in zip((height, width), maps.shape[-2:], strict=True) if n > 1)
        on_labels = maps if whole else on_grid(maps, scale, (fused.shape[-2], fused.shape[-1]))
        losses.append(segmentation_loss(on_labels, labels, True, "stride", normalize, class_weights))
    return torch.stack(losses).sum()


def kazuto_loss(
    scores: torch.Tensor, labels: torch.Tensor, normalize: bool = True, class_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """The loss against labels resized to the scores by Pillow's nearest (kazuto1011/deeplab-pytorch, `resize_labels`)."""
    size = scores.shape[-1], scores.shape[-2]
    maps = [Image.fromarray(label).resize(size, Image.Resampling.NEAREST) for label in labels.to("cpu", torch.uint8).numpy()]
    small = torch.from_numpy(np.stack([np.asarray(picture) for picture in maps])).to(labels.device)
    return segmentation_loss(scores, small, normalize=normalize, class_weights=class_weights)
