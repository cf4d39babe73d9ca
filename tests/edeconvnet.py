"""EDeconvNet's scores from the parts of its folder, put together by the paper's formulas alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deeplab.models import checkpoint
from deeplab.region_proposals import Proposals, chosen_boxes

MEAN = np.array([122.67892, 116.66877, 104.00699])  # RGB, of both networks


def triangle(outputs: int, inputs: int) -> np.ndarray:
    """Bilinear resizing as an outputs x inputs matrix: a triangle over the input, as wide as an output pixel at least."""
    scale = inputs / outputs
    distance = np.arange(inputs) + 0.5 - (np.arange(outputs)[:, None] + 0.5) * scale
    weights = np.clip(1 - np.abs(distance) / max(scale, 1), 0, None)
    return weights / weights.sum(1, keepdims=True)


def forward(network: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """The scores of an image of the network's own size, by its layers alone."""
    x = (image.astype(np.float64) - MEAN)[..., ::-1].transpose(2, 0, 1)
    with torch.no_grad():
        return network(torch.from_numpy(np.ascontiguousarray(x, np.float32))[None])[0].numpy().astype(np.float64)


def composed(folder: Path, image: np.ndarray, rule: str = "mean", paste: str = "max", boxes: int = 3) -> np.ndarray:
    """C x H x W: DeconvNet at the image's boxes, pasted, with FCN-8s on the whole image."""
    deconvnet, fcn = (member.network for member in checkpoint.load(folder).members)
    height, width = image.shape[:2]
    pasted, count = np.zeros((deconvnet.classes, height, width)), np.zeros((height, width))
    for left, top, right, bottom in chosen_boxes(image, Proposals(count=boxes)).tolist():
        crop = Image.fromarray(image[top:bottom, left:right]).resize((224, 224), Image.Resampling.BILINEAR)
        scores = forward(deconvnet, np.asarray(crop))
        rows, columns = triangle(bottom - top, 224), triangle(right - left, 224)
        for y in range(top, bottom):
            line = np.einsum("r,crw->cw", rows[y - top], scores) @ columns.T
            here = pasted[:, y, left:right]
            pasted[:, y, left:right] = np.maximum(here, line) if paste == "max" else here + line
            count[y, left:right] += 1
    if paste == "mean":
        pasted /= np.maximum(count, 1)
    fcn_scores = forward(fcn, image)
    return (pasted + fcn_scores) / 2 if rule == "mean" else pasted * np.maximum(fcn_scores, 0)
