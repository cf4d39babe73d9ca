"""Samples of any bit depth as bytes, which is what networks take."""

from __future__ import annotations

import numpy as np
from PIL import Image

from deeplab.errors import ImageError

BAND = 256  # rows converted at a time: the temporary copies of a whole image would take several times its memory
FLOATS = (
    "floating-point samples do not say which value is white; write bytes from the range that you choose "
    "(gdal_translate -ot Byte -scale BLACK WHITE 0 255 IN OUT)"
)


def to_bytes(values: np.ndarray, white: int) -> np.ndarray:
    """Unsigned samples of up to 16 bits, 0..white, as uint8: lower bits are dropped if white is 2^n - 1 with n from 8 on, any other
    range is scaled to 0..255. Larger samples count as white."""
    bits = white.bit_length()
    if white < np.iinfo(values.dtype).max:
        values = np.minimum(values, values.dtype.type(white))
    if white == 2**bits - 1 and bits >= 8:
        levels: np.ndarray = values >> (bits - 8)
    else:
        levels = (values.astype(np.uint32) * 255 + white // 2) // white
    return levels.astype(np.uint8)


def scaled(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """Signed and 32-bit samples -> uint8, scaled by the value range low..high of the whole picture.

    A range within 0..255 or 0..65535 is extended to the first of these, so that a dark picture stays dark.
    """
    for limit in (255, 65535):
        if low >= 0 and high <= limit:
            low, high = 0, limit
            break
    return ((values.astype(np.float64) - low) * (255.0 / max(high - low, 1))).round().clip(0, 255).astype(np.uint8)


def rgb(image: Image.Image, blend: bool = True) -> Image.Image:
    """A picture of any mode as RGB: wide samples become bytes. `blend`: transparency is laid on white, else an alpha is dropped.

    Raises ImageError for floats.
    """
    mode = image.mode
    if mode == "F":
        raise ImageError(f"is not accepted: {FLOATS}")
    # Pillow scales the samples of a PGM from the range that it states to 16 bits.
    if mode.startswith("I;16") or (mode, image.format) == ("I", "PPM"):
        return Image.fromarray(to_bytes(np.asarray(image).astype(np.uint16, copy=False), 65535)).convert("RGB")
    if mode == "I":
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        parts = [scaled(values[top : top + BAND], low, high) for top in range(0, len(values), BAND)]
        return Image.fromarray(np.concatenate(parts)).convert("RGB")
    if blend and (mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info):
        flat = Image.new("RGB", image.size)
        for top in range(0, image.height, BAND):
            part = image.crop((0, top, image.width, min(image.height, top + BAND))).convert("RGBA")
            white = Image.new("RGBA", part.size, (255, 255, 255, 255))
            flat.paste(Image.alpha_composite(white, part).convert("RGB"), (0, top))
        return flat
    return image if mode == "RGB" else image.convert("RGB")
