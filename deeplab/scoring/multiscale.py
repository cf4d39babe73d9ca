"""One network over several scales of an image, the scores fused on the grid of scale 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from deeplab.networks.network import SegmentationNetwork
from deeplab.networks.resampling import resample
from deeplab.scoring.settings import Fusion


def upsample(scores: np.ndarray, height: int, width: int, stride: int, align_corners: bool = True) -> np.ndarray:
    """C x h x w scores at `stride` -> C x height x width float32."""
    maps = torch.from_numpy(np.ascontiguousarray(scores)).float()
    return resample(maps, (height, width), 1.0 / stride, align_corners).numpy()


def winning_classes(scores: np.ndarray, height: int, width: int, stride: int, align_corners: bool = True) -> np.ndarray:
    """C x h x w scores at `stride` -> the class of the largest score at each pixel: H x W uint8, uint16 above 256 classes.

    Computed block by block: the upsampled scores of one large image would fill gigabytes.
    """
    block = 64 * stride
    labels = np.empty((height, width), np.uint8 if len(scores) <= 256 else np.uint16)
    for top in range(0, height, block):
        for left in range(0, width, block):
            target = labels[top : top + block, left : left + block]
            # Start one score further up and left: without aligned corners the block's first pixels read it.
            above, before = min(top, stride), min(left, stride)
            rows, columns = target.shape[0] + above, target.shape[1] + before
            i, j = (top - above) // stride, (left - before) // stride
            part = scores[:, i : i + rows // stride + 2, j : j + columns // stride + 2]
            target[:] = upsample(part, rows, columns, stride, align_corners)[:, above:, before:].argmax(0)
    return labels


def confidence(scores: np.ndarray) -> float:
    """Mean probability of the winning class over the positions of C x h x w scores."""
    shifted = scores.astype(np.float32)
    shifted -= shifted.max(0)
    return float((1.0 / np.exp(shifted).sum(0)).mean())


def multiscale_scores(
    network: SegmentationNetwork, images: torch.Tensor, scales: Sequence[float], flip: bool, fusion: Fusion
) -> torch.Tensor:
    """Normalised B x 3 x H x W on the lattice, in the network's dtype -> float32 B x C x h x w, fused over scales and mirrors.

    "max" is DeepLab v2's fusion (arXiv 1606.00915, section 4.1.2), per position and class; "mean" averages the
    scores. A mirrored pass is averaged with the straight one before the scales are fused.
    """
    height, width = images.shape[-2:]
    stride = network.stride
    grid = (height - 1) // stride + 1, (width - 1) // stride + 1
    fused: torch.Tensor | None = None
    for scale in scales:
        scaled = images
        if scale != 1.0:
            inner = int((height - 1) * scale) + 1, int((width - 1) * scale) + 1
            scaled = resample(images, inner, 1.0 / scale).to(images.dtype)
            bottom, right = (network.lattice_size(n) - n for n in inner)
            scaled = F.pad(scaled, (0, right, 0, bottom))  # zero is the mean colour after normalisation
        scores = network(scaled).float()
        if flip:
            scores = (scores + network(scaled.flip(-1)).float().flip(-1)) / 2
        if scale != 1.0:
            scores = resample(scores, grid, scale)
        if fused is None:
            fused = scores
        else:
            fused = torch.maximum(fused, scores) if fusion == "max" else fused + scores
    assert fused is not None
    return fused / len(scales) if fusion == "mean" else fused
