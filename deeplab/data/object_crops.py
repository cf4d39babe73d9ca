"""DeconvNet's training crops: first around single objects, then around boxes that overlap them (arXiv 1505.04366, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from deeplab.classes import IGNORE
from deeplab.region_proposals import Proposals, ranked_boxes, require_opencv

Box = tuple[int, int, int, int]
PROPOSALS = Proposals()  # of the second stage: those that DeconvNet is applied to
ENLARGED = 1.2  # factor on the sides of an object's box in the first stage
OVERLAP = 0.5  # least intersection over union of a second-stage box and the object's
RESIZED = 250 / 224  # a box is resized to 250 pixels, and 224 are cropped at random (the released `data_param`)


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes (left, top, right, bottom), right and bottom excluded."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    intersection = max(0, width) * max(0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return intersection / (sum(areas) - intersection)


@dataclass(frozen=True)
class ObjectCrops:
    """One crop of one object: a picture and H x W in, crop x crop x 3 and crop x crop out.

    The labels have no instances, so an object is all pixels of one class in a photo; a photo without objects is used
    whole. `stage` "objects": the object's box, enlarged by 1.2; pixels of other classes become background (0).
    "proposals": a random one of the photo's edge boxes that overlap the object's box by half or more, or where none does, a
    random box that does; all labels are kept.
    Outside the photo pixels are `pad` and labels 255. The box is stretched to a square, as in the released code.

    Raises ProposalsUnavailable if the second stage lacks OpenCV: a training must not depend on what is installed.
    """

    crop: int
    stage: Literal["objects", "proposals"]
    pad: tuple[float, float, float]
    mirror: bool = True

    def __post_init__(self) -> None:
        if self.stage == "proposals":
            require_opencv()

    def __call__(self, picture: Image.Image, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """`rng` is the only source of randomness."""
        image = np.asarray(picture)
        height, width = labels.shape
        present = [int(value) for value in np.unique(labels) if value not in (0, IGNORE)]
        box: Box = (0, 0, width, height)
        if present:
            chosen = int(rng.choice(present))
            rows, columns = np.nonzero(labels == chosen)
            tight = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
            box = enlarged(tight, ENLARGED) if self.stage == "objects" else proposed(image, tight, rng)
            if self.stage == "objects":
                labels = np.where((labels == chosen) | (labels == IGNORE), labels, 0).astype(np.uint8)
        side = round(self.crop * RESIZED)
        pixels = Image.fromarray(cut(image, box, np.round(self.pad))).resize((side, side), Image.Resampling.BILINEAR)
        classes = Image.fromarray(cut(labels, box, IGNORE)).resize((side, side), Image.Resampling.NEAREST)
        top, left = (int(rng.integers(0, side - self.crop + 1)) for _ in range(2))
        part = np.s_[top : top + self.crop, left : left + self.crop]
        out_image, out_labels = np.asarray(pixels)[part], np.asarray(classes)[part]
        if self.mirror and rng.random() < 0.5:
            out_image, out_labels = out_image[:, ::-1], out_labels[:, ::-1]
        return np.ascontiguousarray(out_image), np.ascontiguousarray(out_labels)


def enlarged(box: Box, factor: float) -> Box:
    """The box with the same centre and sides `factor` times as long, rounded outwards."""
    left, top, right, bottom = box
    across, down = (right - left) * (factor - 1) / 2, (bottom - top) * (factor - 1) / 2
    return int(np.floor(left - across)), int(np.floor(top - down)), int(np.ceil(right + across)), int(np.ceil(bottom + down))


def proposed(image: np.ndarray, box: Box, rng: np.random.Generator) -> Box:
    """A random one of the image's proposals that overlap the box by OVERLAP or more; without one, a `jittered` box."""
    boxes = ranked_boxes(image, PROPOSALS.method, PROPOSALS.ranked).tolist()
    near = [(left, top, right, bottom) for left, top, right, bottom in boxes if overlap((left, top, right, bottom), box) >= OVERLAP]
    return near[int(rng.integers(len(near)))] if near else jittered(box, rng)


def jittered(box: Box, rng: np.random.Generator) -> Box:
    """A box with each edge moved by up to a third of the side, drawn until it overlaps by OVERLAP or more."""
    sides = np.array([box[2] - box[0], box[3] - box[1]] * 2)
    while True:
        left, top, right, bottom = (int(v) for v in np.round(np.array(box) + rng.uniform(-1 / 3, 1 / 3, 4) * sides))
        moved = left, top, max(right, left + 1), max(bottom, top + 1)
        if overlap(moved, box) >= OVERLAP:
            return moved


def cut(array: np.ndarray, box: Box, fill: np.ndarray | int) -> np.ndarray:
    """The part of H x W (x 3) in the box, `fill` where the box reaches beyond."""
    left, top, right, bottom = box
    out = np.empty((bottom - top, right - left, *array.shape[2:]), array.dtype)
    out[:] = fill
    inside = array[max(top, 0) : bottom, max(left, 0) : right]
    y, x = max(-top, 0), max(-left, 0)
    out[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return out
