"""From the bands of an image, samples of any depth, to RGB."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from deeplab.images import bit_depth


@dataclass(frozen=True)
class ColourInterpretation:
    """Which bands of a file hold its picture, and how their samples become RGB.

    `bands`: numbers from 1. `white`: the sample value of full intensity; 0 for samples without a scale of their own, which are
    scaled by the whole picture's range. `mode`: Pillow's name: RGB (also for one grey band), RGBA, RGBa (multiplied by alpha),
    CMYK or LAB. `palette`: N x 3 or N x 4 uint8; `key`: the transparent colour.
    """

    bands: list[int]
    white: int = 255
    mode: str = "RGB"
    inverted: bool = False
    palette: np.ndarray | None = None
    key: np.ndarray | None = None

    def rgb(self, values: np.ndarray, limits: tuple[int, int] = (0, 0)) -> np.ndarray:
        """Samples, bands x rows x width -> rows x width x 3 uint8 RGB; `limits`: the picture's range, if `white` is 0."""
        if self.palette is not None:
            pixels = np.concatenate(
                [self.palette[values[0]], *(bit_depth.to_bytes(band, self.white)[..., None] for band in values[1:])], 2
            )
        else:
            levels = bit_depth.to_bytes(values, self.white) if self.white else bit_depth.scaled(values, *limits)
            if self.inverted:
                levels[0] = 255 - levels[0]
            pixels = np.moveaxis(levels, 0, -1)
            if pixels.shape[2] < 3:
                pixels = np.concatenate([np.repeat(pixels[..., :1], 3, 2), pixels[..., 1:]], 2)
            if self.key is not None:
                pixels = np.where((pixels == self.key).all(-1, keepdims=True), np.uint8(255), pixels)
        pixels = np.ascontiguousarray(pixels)
        if self.mode == "RGB":
            return pixels
        # The raw mode is explicit because the sign of LAB's colours differs between files and Pillow.
        return np.array(bit_depth.rgb(Image.frombytes(self.mode, pixels.shape[1::-1], pixels.tobytes(), "raw", self.mode)))
