"""Training augmentation: random scale, crop with mean padding, mirror, and optionally colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from deeplab.classes import IGNORE


@dataclass(frozen=True)
class Augmentation:
    """What happens to one (image, labels) pair, as in DeepLab v2 (`TransformImgAndSeg`): scale, crop, mirror, pad.

    The official code pads before it mirrors; here the padding is always at the bottom and the right, as in the
    predictor.

    `crop`: side of the square result in pixels. `scales`: the discrete factors to draw from. `pad`: the RGB colour of the
    crop beyond the image (the backbone's mean), where labels are 255. `colour`: brightness, contrast and saturation are
    each multiplied by a factor in 1 - colour .. 1 + colour; 0 is off, as in the papers. `class_crops`: the share of crops
    that must show a class drawn evenly from those in the image, so that rare classes are seen as often as common ones.
    """

    crop: int
    scales: tuple[float, ...]
    pad: tuple[float, float, float]
    mirror: bool = True
    colour: float = 0.0
    class_crops: float = 0.0

    def __call__(self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """H x W x 3 uint8 and H x W uint8 -> crop x crop x 3 and crop x crop; `rng` is the only source of randomness."""
        picture, classes = Image.fromarray(image), Image.fromarray(labels)
        factor = float(rng.choice(self.scales))
        if factor != 1.0:
            size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
            picture = picture.resize(size, Image.Resampling.BILINEAR)
            classes = classes.resize(size, Image.Resampling.NEAREST)
        if self.colour:
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                picture = enhance(picture).enhance(float(rng.uniform(1 - self.colour, 1 + self.colour)))
        image, labels = np.asarray(picture), np.asarray(classes)
        height, width = labels.shape
        top = int(rng.integers(0, max(0, height - self.crop) + 1))
        left = int(rng.integers(0, max(0, width - self.crop) + 1))
        if self.class_crops and rng.random() < self.class_crops:
            top, left = self._around_a_class(labels, rng) or (top, left)
        image = image[top : top + self.crop, left : left + self.crop]
        labels = labels[top : top + self.crop, left : left + self.crop]
        if self.mirror and rng.random() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
        out_image = np.empty((self.crop, self.crop, 3), np.uint8)
        out_image[:] = np.round(self.pad)
        out_labels = np.full((self.crop, self.crop), IGNORE, np.uint8)
        out_image[: image.shape[0], : image.shape[1]] = image
        out_labels[: labels.shape[0], : labels.shape[1]] = labels
        return out_image, out_labels

    def _around_a_class(self, labels: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
        """Top and left of a random crop that holds a random pixel of a random class; None if no pixel has one."""
        present = np.flatnonzero(np.bincount(labels.ravel(), minlength=IGNORE + 1)[:IGNORE])
        if not len(present):
            return None
        places = np.flatnonzero(labels == rng.choice(present))
        pixel = divmod(int(rng.choice(places)), labels.shape[1])
        corners = [
            min(max(0, place - int(rng.integers(self.crop))), max(0, side - self.crop))
            for place, side in zip(pixel, labels.shape, strict=True)
        ]
        return corners[0], corners[1]
