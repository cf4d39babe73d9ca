"""DeconvNet's inference: score proposals one by one and paste their scores back (arXiv 1505.04366, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from deeplab.networks.deconvnet import SIDE
from deeplab.networks.network import SegmentationNetwork
from deeplab.region_proposals import Paste, Proposals, chosen_boxes, require_opencv
from deeplab.scoring.full_resolution import FullResolutionPredictor
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.settings import PLAIN, Scoring

GROUP = 8  # crops whose scores are in memory at a time: 34 MB for 21 classes


class ProposalPredictor(FullResolutionPredictor):
    """A network that scores every pixel of 224 x 224, applied to the boxes of an image that may hold an object.

    `scoring`: also of each crop, so `flip` mirrors crops. ValueError for a network whose scores have another stride than 1;
    ProposalsUnavailable if OpenCV is missing.
    """

    def __init__(
        self, network: SegmentationNetwork, proposals: Proposals, scoring: Scoring = PLAIN, *, device: str = "auto"
    ) -> None:
        if network.stride != 1:
            raise ValueError(f"proposals need a network with a score for every pixel, this has one for {network.stride}")
        require_opencv()
        crops = replace(scoring, tile=max(scoring.tile, SIDE))
        self.of_crops = Predictor(network, crops, device=device, score_dtype=torch.float32)
        self.proposals, self.classes = proposals, network.classes
        super().__init__(scoring, self.of_crops.device, self.of_crops.precision, self.of_crops.dtype)

    def scores_of(self, image: np.ndarray) -> np.ndarray:
        return self.scores_of_boxes(image, chosen_boxes(image, self.proposals), self.proposals.paste)

    def scores_of_boxes(self, image: np.ndarray, boxes: np.ndarray, paste: Paste) -> np.ndarray:
        """The scores of N x 4 boxes (left, top, right, bottom), right and bottom excluded, which may reach beyond the image.

        Every box is cut out, black beyond the image as in the released code, resized to 224 x 224 like the training's crops,
        scored, and its scores resized back. "max": the largest score at each pixel and class, at least 0, with which the
        released code starts. "mean": the average over the boxes that contain the pixel, 0 outside all boxes.
        """
        height, width = image.shape[:2]
        total = torch.zeros(self.classes, height, width)
        count = torch.zeros(height, width)
        inside = boxes[(boxes[:, 0] < width) & (boxes[:, 1] < height) & (boxes[:, 2:] > 0).all(1)].tolist()
        for start in range(0, len(inside), GROUP):
            group = inside[start : start + GROUP]
            for box, scores in zip(group, self.of_crops.scores([_crop(image, box) for box in group]), strict=True):
                left, top, right, bottom = box
                maps = torch.from_numpy(scores)[None]
                maps = F.interpolate(maps, (bottom - top, right - left), mode="bilinear", align_corners=False, antialias=True)[0]
                x, y = slice(max(left, 0), min(right, width)), slice(max(top, 0), min(bottom, height))
                part = maps[:, y.start - top : y.stop - top, x.start - left : x.stop - left]
                target = total[:, y, x]
                target.copy_(torch.maximum(target, part) if paste == "max" else target + part)
                count[y, x] += 1
        return (total if paste == "max" else total / count.clamp(min=1)).numpy()


def _crop(image: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """The box of H x W x 3 uint8, black beyond the image, as 224 x 224 x 3."""
    crop = Image.fromarray(image).crop((box[0], box[1], box[2], box[3]))
    return np.array(crop.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
