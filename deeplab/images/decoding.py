"""Image bytes to pixels, for all callers: an accepted file becomes H x W x 3 uint8 RGB, any other raises ImageError."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from deeplab.errors import ImageError, one_line
from deeplab.images import heif, jpeg_2000, jpeg_xl, tiff
from deeplab.images.bit_depth import rgb
from deeplab.images.gdal_raster import Raster

# The formats of photo and raster archives. Pillow opens many more, some through external programs (EPS) or rarely tested
# parsers. MPO is missing because Pillow opens it as JPEG.
PILLOW_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000", "AVIF", "PPM")
FORMATS = (*PILLOW_FORMATS, "HEIF", "JPEG XL")
EXTENSIONS = (
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .heic .heif .hif .tif .tiff .webp .bmp .dib .gif .jp2 .j2k .jpx .avif .jxl "
    ".ppm .pgm .pbm .pnm"
).split()
MAX_PIXELS = 60_000_000
LEAST_STRIDE = 64  # pixels from one tile of a large image to the next

# Pillow's limit applies to the whole process. Ours is checked below, after the header and before any pixel is decoded.
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
    """The header of an encoded image: Pillow's names of format and mode, size in pixels, EXIF orientation (1..8).

    A TIFF's mode is empty because its tags say more; its width and height are those after its orientation is applied. HEIF and
    JPEG XL say in their own way how a picture is turned: their size is that of the upright one, their orientation 1.
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
    """The header of an encoded image of any size; None if it is not an image (`decode` raises the reason)."""
    if tiff.is_tiff(data):
        try:
            stored = tiff.layout(data)
        except tiff.NotTiff:
            return None
        width, height = (stored.height, stored.width) if stored.orientation >= 5 else (stored.width, stored.height)
        return Header("TIFF", "", width, height, stored.orientation)
    if jpeg_xl.is_jpeg_xl(data):
        try:
            stated = jpeg_xl.header(data)
        except jpeg_xl.NotJpegXL:
            return None
        return Header("JPEG XL", "", stated.width, stated.height, 1)
    try:
        with _opened(data) as image:
            # For PNG, getexif() would decode all pixels in search of EXIF data behind them.
            orientation = _orientation(image) if image.format != "PNG" or "exif" in image.info else 1
            return Header(image.format or "", image.mode, image.width, image.height, orientation)
    except Exception:  # Pillow's parsers raise almost anything
        return None


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Encoded image -> H x W x 3 uint8 RGB, rotated by its EXIF orientation; the first frame of an animation.

    Grey, palette, CMYK and LAB become RGB; samples of 9 to 16 bits keep the upper eight of the bits that the file says it uses;
    transparency is laid on white, but a TIFF's only where colours are multiplied by it; wider and signed grey samples are
    scaled by their own range. If there are more bands than RGB needs, those named red, green and blue are used, else the first
    three. Colour profiles are ignored.

    Raises ImageError for data that is not an image, other formats, truncated or damaged files, floating-point samples (but those
    of JPEG XL), more than `max_pixels`, and files whose reader is not installed: rasterio for TIFFs and JPEG 2000
    that only GDAL reads correctly, pillow-heif, imagecodecs (JPEG XL).
    """
    decoded = _decoded(data, max_pixels)
    array = decoded if isinstance(decoded, np.ndarray) else np.array(decoded)
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(f"has no pixels (decoded to shape {array.shape})")
    return array


def decode_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The pixels of `decode` as Pillow's picture of mode RGB, for those who resize it or cut from it: a copy less."""
    decoded = _decoded(data, max_pixels)
    picture = Image.fromarray(decoded) if isinstance(decoded, np.ndarray) else decoded
    if 0 in picture.size:
        raise ImageError(f"has no pixels ({picture.width} x {picture.height})")
    return picture


def _decoded(data: bytes, max_pixels: int) -> Image.Image | np.ndarray:
    """An RGB picture, or its H x W x 3 pixels where another library than Pillow decoded them."""
    if not data:
        raise ImageError("empty file (0 bytes)")
    if jpeg_xl.is_jpeg_xl(data):
        return _jpeg_xl(data, max_pixels)
    samples = jpeg_2000.samples(data)
    if samples is not None and samples.components > 1 and samples.bits > 8:
        return _deep_jpeg_2000(data, samples, max_pixels)
    stored = _tiff_layout(data) if tiff.is_tiff(data) else None
    if stored is not None and not tiff.pillow_reads(stored):
        _check_size(stored.width, stored.height, max_pixels)
        return _by_gdal(data, stored)
    for width, height in heif.sizes(data) if heif.is_heif(data) else ():
        if (width - heif.PADDING) * (height - heif.PADDING) > max_pixels:
            _check_size(width, height, max_pixels)
    try:
        with _opened(data) as image:
            _check_size(*image.size, max_pixels)
            heif.check_tiles(image)
            image.load()
            # Only after load(): for PNG, getexif() reads the file itself and hides its damage from a later load().
            orientation = _orientation(image)
            pixels = rgb(image, blend=stored is None or stored.alpha_applies)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        if stored is not None:
            raise ImageError(f"damaged: its tags describe a TIFF of {stored}, but it cannot be opened as one") from error
        if heif.is_heif(data):
            raise ImageError("damaged: it starts like HEIF or AVIF, but cannot be opened as one") from error
        raise ImageError(f"not an image of an accepted format ({', '.join(FORMATS)})") from error
    except MemoryError:
        raise
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, OverflowError, EOFError, struct.error) as error:
        raise ImageError(f"damaged or truncated: {one_line(error)}") from error
    except (zlib.error, RuntimeError, AttributeError, ZeroDivisionError) as error:
        if heif.NOT_BUILT_IN in str(error):
            raise ImageError(f"a HEIF file is read if its pictures are HEVC, here: {one_line(error)}") from error
        raise ImageError(f"damaged: {one_line(error)}") from error
    return _upright(pixels, orientation)


def _opened(data: bytes) -> Image.Image:
    """Pillow's image, nothing decoded yet. Raises what Pillow's parsers raise, and ImageError if pillow-heif is missing."""
    if heif.is_heif(data):
        heif.register()
        return Image.open(io.BytesIO(data), formats=("AVIF", "HEIF"))
    return Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)


def _jpeg_xl(data: bytes, max_pixels: int) -> np.ndarray:
    try:
        stated = jpeg_xl.header(data)
    except jpeg_xl.NotJpegXL as error:
        raise ImageError(f"damaged or truncated JPEG XL: {error}") from error
    _check_size(stated.width, stated.height, max_pixels)
    return jpeg_xl.decode(data, stated)


def _deep_jpeg_2000(data: bytes, samples: jpeg_2000.Samples, max_pixels: int) -> np.ndarray:
    stated = header(data)
    name = f"a JPEG 2000 of {samples.components} components of up to {samples.bits} bits"
    if stated is None:
        raise ImageError(f"damaged or truncated: {name} that cannot be opened")
    _check_size(stated.width, stated.height, max_pixels)
    if not samples.plain:
        raise ImageError(f"{name} is accepted if they are RGB, unsigned, equally deep and of the same resolution")
    try:
        with Raster(data, "JPEG2000", stated.mode) as raster:
            return raster.whole()
    except ImageError as error:
        raise ImageError(f"{name} {error}") from error


def _tiff_layout(data: bytes) -> tiff.TiffLayout:
    try:
        return tiff.layout(data)
    except tiff.NotTiff as error:
        raise ImageError(f"damaged or truncated TIFF: {error}") from error


def _by_gdal(data: bytes, stored: tiff.TiffLayout) -> np.ndarray:
    try:
        tiff.check_samples(stored)
        with Raster(data, "TIFF") as raster:
            size = (raster.width, raster.height)
            if size != (stored.width, stored.height):
                raise ImageError(f"has {stored.width} x {stored.height} pixels by its tags, but {size[0]} x {size[1]} by GDAL")
            pixels = raster.whole()
    except ImageError as error:
        raise ImageError(f"a TIFF of {stored} {error}") from error
    return pixels if stored.orientation == 1 else np.array(_upright(Image.fromarray(pixels), stored.orientation))


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(f"{width} x {height} is {width * height:,} pixels, over the limit of {max_pixels:,}")


def _upright(pixels: Image.Image, orientation: int) -> Image.Image:
    return pixels.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else pixels


def decode_labels(data: bytes) -> np.ndarray:
    """Label image (palette or grey PNG of 1 to 16 bits, value = class id) -> H x W uint8; ImageError for anything else.

    Values are as stored, although Pillow spreads 2- and 4-bit grey over 0..255. Values above 255 are refused.
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
            if image.mode == "L" and bits < 8:
                values //= np.uint8(255 // (2**bits - 1))
            if values.dtype == np.uint8:
                return values
    except ImageError:
        raise
    except (OSError, ValueError, SyntaxError, IndexError, struct.error, zlib.error) as error:
        raise ImageError(f"labels are PNG: {one_line(error)}") from error
    if values.max() > 255:
        raise ImageError(f"labels hold the value {values.max()}: up to 255 is accepted")
    return values.astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    if image.format == "HEIF":  # libheif turned it already; a tag in EXIF repeats that or means nothing
        return 1
    try:
        return int(image.getexif().get(274, 1))
    except Exception:  # malformed EXIF raises almost anything, and is no reason to refuse the pixels
        return 1
