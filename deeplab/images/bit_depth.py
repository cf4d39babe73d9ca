"""Samples of any bit depth as bytes, which is what networks take."""

from __future__ import annotations

import numpy as np
from PIL import Image

BAND = 256  # rows converted at a time: the temporary copies of a whole image would take several times its memory


def to_bytes(values: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned samples of 1 to 16 bits -> uint8: wider ones keep their upper eight bits, narrower ones fill the range."""
    if bits >= 8:
        levels: np.ndarray = values >> (bits - 8)
    else:
        steps = 2**bits - 1
        levels = (values.astype(np.uint16) * 255 + steps // 2) // steps
    return levels.astype(np.uint8)


def value_range(values: np.ndarray) -> tuple[float, float]:
    """The lowest and highest value; values that are not finite count as 0."""
    finite = _finite(values)
    return float(finite.min()), float(finite.max())


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Signed, 32-bit and floating-point samples -> uint8, scaled by the value range low..high of the whole picture.

    A range within 0..1, 0..255 or 0..65535 is extended to the first of these, so that a dark picture stays dark.
    """
    for limit in (1.0, 255.0, 65535.0):
        if low >= 0 and high <= limit:
            low, high = 0.0, limit
            break
    return ((_finite(values) - low) * (255.0 / max(high - low, 1e-12))).round().clip(0, 255).astype(np.uint8)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB: transparency is laid on white, wide samples become bytes."""
    mode = image.mode
    if mode.startswith("I;16"):
        return Image.fromarray(to_bytes(np.asarray(image), 16)).convert("RGB")
    if mode in ("I", "F"):
        values = np.asarray(image)
        parts = [values[top : top + BAND] for top in range(0, len(values), BAND)]
        lows, highs = zip(*map(value_range, parts), strict=True)
        return Image.fromarray(np.concatenate([scaled(part, min(lows), max(highs)) for part in parts])).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        flat = Image.new("RGB", image.size)
        for top in range(0, image.height, BAND):
            part = image.crop((0, top, image.width, min(image.height, top + BAND))).convert("RGBA")
            white = Image.new("RGBA", part.size, (255, 255, 255, 255))
            flat.paste(Image.alpha_composite(white, part).convert("RGB"), (0, top))
        return flat
    return image.convert("RGB")
