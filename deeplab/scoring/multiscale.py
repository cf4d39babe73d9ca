"""One network over several scales of an image, the scores fused on the grid of scale 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from deeplab.networks.network import SegmentationNetwork
from deeplab.networks.resampling import resample_at
from deeplab.placement import Placement
from deeplab.scoring.settings import Fusion

BLOCK = 512  # pixels a side


def upsample(scores: np.ndarray, height: int, width: int, placement: Placement) -> np.ndarray:
    """C x h x w scores that lie on the image as `placement` says -> C x height x width float32."""
    maps = torch.from_numpy(np.ascontiguousarray(scores)).float()
    return resample_at(maps, (height, width), placement).numpy()


def winning_classes(scores: np.ndarray, height: int, width: int, placement: Placement) -> np.ndarray:
    """C x h x w scores -> the class of the largest score at each pixel: H x W uint8, uint16 above 256 classes.

    Computed block by block: the upsampled scores of one large image would fill gigabytes.
    """
    labels = np.empty((height, width), np.uint8 if len(scores) <= 256 else np.uint16)
    for top in range(0, height, BLOCK):
        rows, row_axis = placement.rows.window(top, min(top + BLOCK, height))
        for left in range(0, width, BLOCK):
            columns, column_axis = placement.columns.window(left, min(left + BLOCK, width))
            target = labels[top : top + BLOCK, left : left + BLOCK]
            part = upsample(scores[:, rows, columns], target.shape[0], target.shape[1], Placement(row_axis, column_axis))
            target[:] = part.argmax(0)
    return labels


def confidence(scores: np.ndarray) -> float:
    """Mean probability of the winning class over the positions of C x h x w scores."""
    shifted = scores.astype(np.float32)
    shifted -= shifted.max(0)
    return float((1.0 / np.exp(shifted).sum(0)).mean())


def multiscale_scores(
    network: SegmentationNetwork, images: torch.Tensor, scales: Sequence[float], flip: bool, fusion: Fusion
) -> torch.Tensor:
    """Normalised B x 3 x H x W, padded as `Predictor` does, in the network's dtype -> float32 B x C x h x w.

    Fused over scales and mirrors. "max" is DeepLab v2's fusion (arXiv 1606.00915, section 4.1.2), per position and class;
    "mean" averages the scores. A mirrored pass is averaged with the straight one before the scales are fused. The network's
    geometry says how scaled images are made, and where their scores lie on those of scale 1.
    """
    grid = network.grid(images.shape[-2], images.shape[-1], images) if set(scales) != {1.0} else None
    fused: torch.Tensor | None = None
    for scale in scales:
        scores = _scores(network, _scaled(network, images, scale), flip)
        if scale != 1.0:
            assert grid is not None
            scores = resample_at(scores, grid, network.geometry.scaled_scores(scores.shape[-2:], grid, scale))
        if fused is None:
            fused = scores
        else:
            fused = torch.maximum(fused, scores) if fusion == "max" else fused + scores
    assert fused is not None
    return fused / len(scales) if fusion == "mean" else fused


def _scaled(network: SegmentationNetwork, images: torch.Tensor, scale: float) -> torch.Tensor:
    """The images at a scale, padded to the lattice again if the geometry pads."""
    if scale == 1.0:
        return images
    geometry, size = network.geometry, images.shape[-2:]
    height, width = (geometry.scaled_side(side, scale) for side in size)
    scaled = resample_at(images, (height, width), geometry.scaled_image(size, scale)).to(images.dtype)
    if not geometry.padded:
        return scaled
    bottom, right = (network.lattice_size(side) - side for side in (height, width))
    return F.pad(scaled, (0, right, 0, bottom))  # zero is the mean colour after normalisation


def _scores(network: SegmentationNetwork, images: torch.Tensor, flip: bool) -> torch.Tensor:
    scores: torch.Tensor = network(images).float()
    return (scores + network(images.flip(-1)).float().flip(-1)) / 2 if flip else scores
