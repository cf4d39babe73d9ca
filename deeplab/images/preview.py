"""Photos for people to look at, with their masks."""

from __future__ import annotations

import math

import numpy as np

from deeplab.errors import ImageError
from deeplab.images.decoding import MAX_PIXELS, decode, header
from deeplab.images.row_windows import reduced

# Of images that are too large to be decoded whole, pictures show about as many, evenly spaced.
SHOWN_PIXELS = 16_000_000


def picture(encoded: bytes, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The photo with its mask, both reduced where the photo is too large to be decoded. ImageError: it is another one now."""
    told = header(encoded)
    if told is not None and told.pixels > MAX_PIXELS:
        size, step = (told.height, told.width), math.ceil(math.sqrt(told.pixels / SHOWN_PIXELS))
        image = reduced(encoded, told, step) if size == labels.shape else None
    else:
        image, step = decode(encoded), 1
        size = image.shape[:2]
    if image is None or size != labels.shape:
        raise ImageError(f"it is {size} now, the mask {labels.shape}")
    return image, np.ascontiguousarray(labels[::step, ::step])
