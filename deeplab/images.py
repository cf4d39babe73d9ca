"""The one place where image bytes become pixels: every accepted file ends as H x W x 3 uint8 RGB, all others as ImageError."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

# Pillow opens many more formats, some through outside programs (EPS) or rarely tested parsers; these are what photo
# and raster archives hold. MPO opens as JPEG; Pillow knows no such name when opening.
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000", "AVIF", "PPM")
EXTENSIONS = (
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .tif .tiff .webp .bmp .dib .gif .jp2 .j2k .jpx .avif .ppm .pgm .pbm .pnm".split()
)
MAX_PIXELS = 60_000_000
LEAST_STRIDE = 64  # pixels from one tile of a large image to the next
BAND = 256  # rows that are laid on white at a time

# Pillow's limit is one for the whole process. Ours are kept below, after the header and before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """The bytes are not an image that is accepted here; the message is one line with the reason."""


@dataclass(frozen=True)
class Header:
    """What an encoded image says of itself: Pillow's names of format and mode, pixels, EXIF orientation (1..8).

    A TIFF whose colours are multiplied by their alpha has the mode RGBa here.
    """

    format: str
    mode: str
    width: int
    height: int
    orientation: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


def header(data: bytes) -> Header | None:
    """The header of an encoded image, whatever its size; None for what is no image (`decode` says what it is)."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # For PNG, getexif() would decode all pixels in search of EXIF data behind them.
            turned = _orientation(image) if image.format != "PNG" or "exif" in image.info else 1
            multiplied = isinstance(image, TiffImagePlugin.TiffImageFile) and image.mode == "RGBA" and image.tag_v2.get(338) == (1,)
            return Header(image.format or "", "RGBa" if multiplied else image.mode, image.width, image.height, turned)
    except Exception:  # Pillow's parsers raise almost anything
        return None


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Encoded image -> H x W x 3 uint8 RGB, turned as its EXIF orientation asks, the first frame of an animation.

    Grey, palette, CMYK and LAB become RGB; 16-bit samples keep their upper byte; transparency is laid on white; 32-bit
    integers and floats are scaled by their own range (0..1 for floats within it). Colour profiles are not applied.

    Raises ImageError for what is no image, another format, truncated or damaged, or above `max_pixels`.
    """
    if not data:
        raise ImageError("empty file (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(f"{width} x {height} is {width * height:,} pixels, over the limit of {max_pixels:,}")
            image.load()
            # Only after load(): for PNG, getexif() reads the file itself and hides its damage from a later load().
            orientation = _orientation(image)
            pixels = rgb(image)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"not an image of an accepted format ({', '.join(FORMATS)})") from error
    except MemoryError:
        raise
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, OverflowError, EOFError, struct.error) as error:
        raise ImageError(f"damaged or truncated: {_one_line(error)}") from error
    except (zlib.error, RuntimeError, AttributeError, ZeroDivisionError) as error:
        raise ImageError(f"damaged: {_one_line(error)}") from error
    if orientation in _TRANSPOSE:
        pixels = pixels.transpose(_TRANSPOSE[orientation])
    array = np.array(pixels)
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(f"has no pixels (decoded to shape {array.shape})")
    return array


def decode_labels(data: bytes) -> np.ndarray:
    """Label image (8-bit palette or grey PNG, value = class id) -> H x W uint8; ImageError for anything else."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"labels of {image.width} x {image.height}: up to {MAX_PIXELS:,} pixels are accepted")
            image.load()
            if image.mode not in ("P", "L"):
                raise ImageError(f"labels are 8-bit palette or grey PNG, this is mode {image.mode}")
            return np.array(image)
    except ImageError:
        raise
    except (OSError, ValueError, SyntaxError, IndexError, struct.error, zlib.error) as error:
        raise ImageError(f"labels are PNG: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(274, 1))
    except Exception:  # malformed EXIF comes as almost any exception, and is no reason to refuse the pixels
        return 1


def rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, as `decode` makes it: transparency on white, wide samples scaled to bytes."""
    mode = image.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        return Image.fromarray(_scaled_to_bytes(np.asarray(image))).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        flat = Image.new("RGB", image.size)
        for top in range(0, image.height, BAND):  # whole, three more copies of the image would be in memory
            part = image.crop((0, top, image.width, min(image.height, top + BAND))).convert("RGBA")
            white = Image.new("RGBA", part.size, (255, 255, 255, 255))
            flat.paste(Image.alpha_composite(white, part).convert("RGB"), (0, top))
        return flat
    return image.convert("RGB")


def _scaled_to_bytes(values: np.ndarray) -> np.ndarray:
    """16-bit samples keep their upper byte; wider ones are scaled by the range they use (`convert` would clip them)."""
    if values.dtype.itemsize == 2:
        return (values.astype(np.uint16) >> 8).astype(np.uint8)
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    return ((values - low) * (255.0 / max(high - low, 1e-12))).round().clip(0, 255).astype(np.uint8)
