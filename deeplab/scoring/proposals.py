"""DeconvNet's inference: score proposals one by one and paste their scores back (arXiv 1505.04366, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from deeplab.networks.deconvnet import SIDE
from deeplab.networks.network import SegmentationNetwork

MOST, SMALLEST = 50, 112  # number of proposals, and their least side in pixels (`generate_EDeconvNet_CRF_results.m`)
Paste = Literal["max", "mean"]
Ensemble = Literal["mean", "product"]


def chosen_boxes(boxes: np.ndarray, most: int = MOST, smallest: int = SMALLEST) -> np.ndarray:
    """The first `most` boxes (they come best first) with both sides of at least `smallest` pixels.

    boxes: N x 4 integers (left, top, right, bottom), right and bottom excluded; they may reach beyond the image.
    ValueError for another shape or an empty box.
    """
    boxes = np.asarray(boxes)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.issubdtype(boxes.dtype, np.integer):
        raise ValueError(f"boxes of shape {boxes.shape}, {boxes.dtype}: N x 4 integers (left, top, right, bottom) are accepted")
    sides = boxes[:, 2:] - boxes[:, :2]
    if (sides <= 0).any():
        raise ValueError(f"box {boxes[(sides <= 0).any(1)][0].tolist()} is empty: left < right and top < bottom are accepted")
    chosen: np.ndarray = boxes[sides.min(1) >= smallest][:most]
    return chosen


@torch.inference_mode()
def proposal_scores(
    network: SegmentationNetwork,
    image: np.ndarray,
    boxes: Sequence[Sequence[int]] | np.ndarray,
    paste: Paste = "max",
    most: int = MOST,
    smallest: int = SMALLEST,
) -> np.ndarray:
    """H x W x 3 uint8 RGB and proposals -> class scores, C x H x W float32.

    Every chosen box (`chosen_boxes`) is cut out, black beyond the image as in the released code, resized to 224 x 224,
    scored, and its scores resized back. "max": the largest score at each pixel and class, at least 0, with which the
    released code starts. "mean": the average over the boxes that contain the pixel, 0 outside all boxes.
    """
    if paste not in ("max", "mean"):
        raise ValueError(f"paste {paste!r}: 'max' and 'mean' are accepted")
    height, width = image.shape[:2]
    total = torch.zeros(network.classes, height, width)
    count = torch.zeros(height, width)
    pixels = torch.from_numpy(image).permute(2, 0, 1).float()
    device = next(network.parameters()).device
    for left, top, right, bottom in chosen_boxes(np.asarray(boxes), most, smallest).tolist():
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        if x0 >= x1 or y0 >= y1:
            continue
        crop = F.pad(pixels[:, y0:y1, x0:x1], (x0 - left, right - x1, y0 - top, bottom - y1))
        crop = F.interpolate(crop[None], (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        scores = network(network.normalization.apply(crop.to(device))).float().cpu()
        scores = F.interpolate(scores, (bottom - top, right - left), mode="bilinear", align_corners=False, antialias=True)[0]
        part = scores[:, y0 - top : y1 - top, x0 - left : x1 - left]
        target = total[:, y0:y1, x0:x1]
        target.copy_(torch.maximum(target, part) if paste == "max" else target + part)
        count[y0:y1, x0:x1] += 1
    return (total if paste == "max" else total / count.clamp(min=1)).numpy()


def ensemble(deconvnet: np.ndarray, fcn: np.ndarray, rule: Ensemble = "mean") -> np.ndarray:
    """EDeconvNet: the scores of DeconvNet and of FCN-8s, C x H x W each, combined.

    "mean" is the paper's rule (section 4.4); "product" the released demo's: DeconvNet's scores times FCN's positive ones.
    """
    if deconvnet.shape != fcn.shape:
        raise ValueError(f"scores of {deconvnet.shape} and {fcn.shape}: one shape is accepted")
    if rule not in ("mean", "product"):
        raise ValueError(f"rule {rule!r}: 'mean' and 'product' are accepted")
    scores: np.ndarray = (deconvnet + fcn) / 2 if rule == "mean" else deconvnet * np.maximum(fcn, 0)
    return scores
