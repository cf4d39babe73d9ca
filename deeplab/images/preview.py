"""Photos with their masks, small enough to look at."""

from __future__ import annotations

import math

import numpy as np

from deeplab.errors import ImageError
from deeplab.images.decoding import MAX_PIXELS, decode, header
from deeplab.images.row_windows import reduced

# About how many evenly spaced pixels are shown of an image that is too large to decode whole.
SHOWN_PIXELS = 16_000_000


def picture(encoded: bytes, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The photo and its mask, both reduced if the photo is too large to decode whole. ImageError if their sizes differ."""
    stored = header(encoded)
    if stored is not None and stored.pixels > MAX_PIXELS:
        size, step = (stored.height, stored.width), math.ceil(math.sqrt(stored.pixels / SHOWN_PIXELS))
        image = reduced(encoded, stored, step) if size == labels.shape else None
    else:
        image, step = decode(encoded), 1
        size = image.shape[:2]
    if image is None or size != labels.shape:
        raise ImageError(f"it is {size[0]} x {size[1]} now, its mask {labels.shape[0]} x {labels.shape[1]} (height x width)")
    return image, np.ascontiguousarray(labels[::step, ::step])
