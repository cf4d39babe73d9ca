"""Training augmentation: random scale, crop with mean padding, mirror, and optionally colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from deeplab.classes import IGNORE

GREY = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
SAMPLED = 90  # rows or columns of the shorter side that the mean grey is taken from


@dataclass(frozen=True)
class Augmentation:
    """What happens to one (image, labels) pair, as in DeepLab v2 (`TransformImgAndSeg`): scale, crop, mirror, pad.

    The official code pads before it mirrors; here the padding is always at the bottom and the right, as in the
    predictor.

    `crop`: side of the square result in pixels. `scales`: the discrete factors to draw from. `pad`: the RGB colour of the
    crop beyond the image (the backbone's mean), where labels are 255. `colour`: brightness, contrast and saturation are
    each multiplied by a factor in 1 - colour .. 1 + colour, in this order; 0 is off, as in the papers. `class_crops`: the
    share of crops that must show a class drawn evenly from those in the image, so that rare classes are seen as often as
    common ones.
    """

    crop: int
    scales: tuple[float, ...]
    pad: tuple[float, float, float]
    mirror: bool = True
    colour: float = 0.0
    class_crops: float = 0.0

    def __call__(self, picture: Image.Image, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """RGB picture and H x W uint8 -> crop x crop x 3 and crop x crop uint8; `rng` is the only source of randomness.

        The pixels are those of the whole picture after scaling and colour, cut out, but only they are computed.
        """
        factor = float(rng.choice(self.scales))
        width, height = (max(1, round(side * factor)) for side in picture.size)
        rows, columns = _nearest(picture.height, height), _nearest(picture.width, width)
        changes = rng.uniform(1 - self.colour, 1 + self.colour, 3) if self.colour else None
        top = int(rng.integers(0, max(0, height - self.crop) + 1))
        left = int(rng.integers(0, max(0, width - self.crop) + 1))
        if self.class_crops and rng.random() < self.class_crops:
            top, left = self._around_a_class(labels.take(rows, 0).take(columns, 1), rng) or (top, left)
        rows, columns = rows[top : top + self.crop], columns[left : left + self.crop]
        part = _scaled_part(picture, (width, height), (left, top, left + len(columns), top + len(rows)))
        if changes is not None:
            part = _coloured(part, picture, *changes.tolist())
        if self.mirror and rng.random() < 0.5:
            part, columns = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT), columns[::-1]
        classes = labels.take(rows, 0).take(columns, 1)
        if classes.shape == (self.crop, self.crop):
            return np.array(part), classes
        padded = Image.new("RGB", (self.crop, self.crop), tuple(round(level) for level in self.pad))
        padded.paste(part)
        out = np.full((self.crop, self.crop), IGNORE, np.uint8)
        out[: len(rows), : len(columns)] = classes
        return np.array(padded), out

    def _around_a_class(self, labels: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
        """Top and left of a random crop that holds a random pixel of a random class; None if no pixel has one."""
        present = np.flatnonzero(Image.fromarray(labels).histogram()[:IGNORE])
        if not len(present):
            return None
        places = np.flatnonzero(labels == rng.choice(present))
        pixel = divmod(int(rng.choice(places)), labels.shape[1])
        corners = [
            min(max(0, place - int(rng.integers(self.crop))), max(0, side - self.crop))
            for place, side in zip(pixel, labels.shape, strict=True)
        ]
        return corners[0], corners[1]


def _nearest(side: int, scaled: int) -> np.ndarray:
    """For each of `scaled` pixels that share a side of `side` pixels, the one that its centre lies in."""
    return (2 * np.arange(scaled) + 1) * side // (2 * scaled)


def _scaled_part(picture: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """The part of the picture, resized to `size` (width, height), that lies in `box` (left, top, right, bottom)."""
    if size == picture.size:
        return picture.crop(box)
    left, top, right, bottom = box
    # The product first: where the box reaches the edge, the quotient is the side, not a rounding more.
    source = [side * place / scaled for place, side, scaled in zip(box, picture.size * 2, size * 2, strict=True)]
    return picture.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=(source[0], source[1], source[2], source[3]))


def _coloured(part: Image.Image, whole: Image.Image, brightness: float, contrast: float, saturation: float) -> Image.Image:
    """`part` after the three changes to `whole`, in that order: contrast is the distance from the mean grey of `whole`."""
    bright = (np.arange(256) * brightness).clip(0, 255)
    step = max(1, min(whole.size) // SAMPLED)
    sample = whole.resize((-(-whole.width // step), -(-whole.height // step)), Image.Resampling.NEAREST)
    levels = np.reshape(sample.histogram(), (3, 256)) @ bright
    mean = float(levels @ GREY) / (sample.width * sample.height)
    levels = (mean + contrast * (bright - mean)).clip(0, 255).round().astype(int)
    part = part.point(levels.tolist() * 3)
    # A pixel's own grey is what saturation moves it from.
    rows = saturation * np.eye(3) + (1 - saturation) * np.array(GREY)
    return part.convert("RGB", tuple(np.column_stack([rows, np.zeros(3)]).ravel().tolist()))
