"""One network over several scales of an image, the scores fused on the grid of scale 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from deeplab.network import SegmentationNetwork

Fusion = Literal["max", "mean"]


def _places(outputs: int, inputs: int, step: float, align_corners: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """For each output the input before its position (int64), and how far the position lies beyond it (float64, 0..1)."""
    index = torch.arange(outputs, dtype=torch.float64)
    position = index * step if align_corners else (index + 0.5) * step - 0.5
    position = position.clamp(0, inputs - 1)
    low = position.floor().clamp(max=max(0, inputs - 2))
    return low.long(), position - low


def interpolation_matrix(outputs: int, inputs: int, step: float, align_corners: bool, device: torch.device) -> torch.Tensor:
    """Linear interpolation as an outputs x inputs float32 matrix: output j reads input position `j * step`.

    With `align_corners` (Caffe's Interp) positions are as said; without, pixels are areas and output j reads
    `(j + 0.5) * step - 0.5`. Positions beyond the ends read the end.
    """
    columns, weight = _places(outputs, inputs, step, align_corners)
    matrix = torch.zeros(outputs, inputs, dtype=torch.float64)
    rows = torch.arange(outputs)
    matrix[rows, columns] = 1 - weight
    if inputs > 1:
        matrix[rows, columns + 1] += weight
    return matrix.to(device=device, dtype=torch.float32)


def resample(maps: torch.Tensor, size: tuple[int, int], step: float, align_corners: bool = True) -> torch.Tensor:
    """Bilinear: ... x h x w float32 -> ... x size, output (i, j) read at input (i * step, j * step).

    Unlike a resize to a size, the step is exact whatever the sides are: scores at stride 8 go to pixels with step
    1/8, an image to half scale with step 2, and pixel 8i stays under score i.
    """
    if step > 1 and not torch.is_grad_enabled():
        return _picked(maps, size, step, align_corners)
    rows = interpolation_matrix(size[0], maps.shape[-2], step, align_corners, maps.device)
    columns = interpolation_matrix(size[1], maps.shape[-1], step, align_corners, maps.device)
    device = "cpu" if maps.is_meta else maps.device.type
    with torch.autocast(device, enabled=False):  # half precision would move positions by up to 1/256 of the side
        return rows @ maps.float() @ columns.T


def _picked(maps: torch.Tensor, size: tuple[int, int], step: float, align_corners: bool) -> torch.Tensor:
    """`resample` towards fewer pixels: two inputs are picked for each output, where a product would multiply with zeros.

    A photo to three quarters takes 2 ms for 9. Towards more pixels, and in gradients, the product is the faster way.
    """
    maps = maps.float()
    for dimension, outputs in ((-2, size[0]), (-1, size[1])):
        inputs = maps.shape[dimension]
        low, weight = _places(outputs, inputs, step, align_corners)
        weight = weight.to(maps.device, torch.float32).view(-1, 1) if dimension == -2 else weight.to(maps.device, torch.float32)
        high = (low + 1).clamp(max=inputs - 1).to(maps.device)
        maps = torch.lerp(maps.index_select(dimension, low.to(maps.device)), maps.index_select(dimension, high), weight)
    return maps


def upsample(scores: np.ndarray, height: int, width: int, stride: int, align_corners: bool = True) -> np.ndarray:
    """C x h x w scores at `stride` -> C x height x width float32."""
    maps = torch.from_numpy(np.ascontiguousarray(scores)).float()
    return resample(maps, (height, width), 1.0 / stride, align_corners).numpy()


def winning_classes(scores: np.ndarray, height: int, width: int, stride: int, align_corners: bool = True) -> np.ndarray:
    """C x h x w scores at `stride` -> the class of the largest score at each pixel: H x W uint8, uint16 above 256 classes.

    Block by block, as the upsampled scores of one large image would fill gigabytes.
    """
    block = 64 * stride
    labels = np.empty((height, width), np.uint8 if len(scores) <= 256 else np.uint16)
    for top in range(0, height, block):
        for left in range(0, width, block):
            target = labels[top : top + block, left : left + block]
            # One score further up and left than the block starts: without aligned corners its first pixels read it.
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
