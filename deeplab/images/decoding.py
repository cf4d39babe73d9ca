"""The one place where image bytes become pixels: every accepted file ends as H x W x 3 uint8 RGB, all others as ImageError."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from deeplab.errors import ImageError, one_line
from deeplab.images import tiff
from deeplab.images.bit_depth import rgb
from deeplab.images.gdal_raster import Raster

# Pillow opens many more formats, some through outside programs (EPS) or rarely tested parsers; these are what photo
# and raster archives hold. MPO opens as JPEG; Pillow knows no such name when opening.
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000", "AVIF", "PPM")
EXTENSIONS = (
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .tif .tiff .webp .bmp .dib .gif .jp2 .j2k .jpx .avif .ppm .pgm .pbm .pnm".split()
)
MAX_PIXELS = 60_000_000
LEAST_STRIDE = 64  # pixels from one tile of a large image to the next

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


@dataclass(frozen=True)
class Header:
    """What an encoded image says of itself: Pillow's names of format and mode, pixels, EXIF orientation (1..8).

    The mode of a TIFF is empty, as its tags say more. Its width and height are those after its orientation is followed.
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
    if tiff.is_tiff(data):
        try:
            stored = tiff.layout(data)
        except tiff.NotTiff:
            return None
        width, height = (stored.height, stored.width) if stored.orientation >= 5 else (stored.width, stored.height)
        return Header("TIFF", "", width, height, stored.orientation)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # For PNG, getexif() would decode all pixels in search of EXIF data behind them.
            turned = _orientation(image) if image.format != "PNG" or "exif" in image.info else 1
            return Header(image.format or "", image.mode, image.width, image.height, turned)
    except Exception:  # Pillow's parsers raise almost anything
        return None


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Encoded image -> H x W x 3 uint8 RGB, turned as its EXIF orientation asks, the first frame of an animation.

    Grey, palette, CMYK and LAB become RGB; samples of 9 to 16 bits keep their upper eight; transparency is laid on white;
    wider, signed and floating samples of grey are scaled by their own range (0..1 for floats within it). Of more bands than
    a picture has, those that are named red, green and blue are taken, else the first three. Colour profiles are not applied.

    Raises ImageError for what is no image, another format, truncated or damaged, or above `max_pixels`, and for a TIFF
    that only GDAL reads rightly where rasterio is not installed.
    """
    if not data:
        raise ImageError("empty file (0 bytes)")
    stored = _tiff_layout(data) if tiff.is_tiff(data) else None
    if stored is not None and not tiff.pillow_reads(stored):
        _limit(stored.width, stored.height, max_pixels)
        return _by_gdal(data, stored)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _limit(*image.size, max_pixels)
            image.load()
            # Only after load(): for PNG, getexif() reads the file itself and hides its damage from a later load().
            orientation = _orientation(image)
            pixels = rgb(image)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        if stored is not None:
            raise ImageError(f"damaged: it says that it is a TIFF of {stored}, and cannot be opened as one") from error
        raise ImageError(f"not an image of an accepted format ({', '.join(FORMATS)})") from error
    except MemoryError:
        raise
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, OverflowError, EOFError, struct.error) as error:
        raise ImageError(f"damaged or truncated: {one_line(error)}") from error
    except (zlib.error, RuntimeError, AttributeError, ZeroDivisionError) as error:
        raise ImageError(f"damaged: {one_line(error)}") from error
    array = np.array(_upright(pixels, orientation))
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(f"has no pixels (decoded to shape {array.shape})")
    return array


def _tiff_layout(data: bytes) -> tiff.TiffLayout:
    try:
        return tiff.layout(data)
    except tiff.NotTiff as error:
        raise ImageError(f"damaged or truncated TIFF: {error}") from error


def _by_gdal(data: bytes, stored: tiff.TiffLayout) -> np.ndarray:
    try:
        with Raster(data, "TIFF") as raster:
            size = (raster.width, raster.height)
            if size != (stored.width, stored.height):
                raise ImageError(f"is {stored.width} x {stored.height} pixels by its tags, and {size[0]} x {size[1]} for GDAL")
            pixels = raster.whole()
    except ImageError as error:
        raise ImageError(f"a TIFF of {stored} {error}") from error
    return pixels if stored.orientation == 1 else np.array(_upright(Image.fromarray(pixels), stored.orientation))


def _limit(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(f"{width} x {height} is {width * height:,} pixels, over the limit of {max_pixels:,}")


def _upright(pixels: Image.Image, orientation: int) -> Image.Image:
    return pixels.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else pixels


def decode_labels(data: bytes) -> np.ndarray:
    """Label image (palette or grey PNG of 1 to 16 bits, value = class id) -> H x W uint8; ImageError for anything else.

    Values are those of the file: Pillow spreads 2- and 4-bit grey over 0..255. Values above 255 are refused.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"labels of {image.width} x {image.height}: up to {MAX_PIXELS:,} pixels are accepted")
            bits = data[24]  # of the header, which is a PNG's first chunk
            image.load()
            if image.mode not in ("P", "1", "L", "I;16", "I"):
                raise ImageError(f"labels are palette or grey PNG, this is mode {image.mode}")
            values = np.array(image)
            if image.mode == "L":
                return values // np.uint8(255 // (2**bits - 1))
    except ImageError:
        raise
    except (OSError, ValueError, SyntaxError, IndexError, struct.error, zlib.error) as error:
        raise ImageError(f"labels are PNG: {one_line(error)}") from error
    if values.max() > 255:
        raise ImageError(f"labels hold the value {values.max()}: up to 255 is accepted")
    return values.astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(274, 1))
    except Exception:  # malformed EXIF comes as almost any exception, and is no reason to refuse the pixels
        return 1
