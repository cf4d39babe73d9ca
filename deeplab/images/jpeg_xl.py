"""JPEG XL through imagecodecs (libjxl, the extra `jxl`). It tells a picture's size only by decoding it: the header is read here.

Pillow's only plugin for the format (pillow-jxl-plugin) decodes when a file is opened, too, and its licence is the GPL.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deeplab.errors import ImageError, one_line
from deeplab.images.colours import ColourInterpretation

CODESTREAM = b"\xff\x0a"
CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
INSTALL = "JPEG XL needs imagecodecs (pip install 'deeplab-pipelines[jxl]')"
HEADER_BYTES = 4096  # at least of the codestream that are looked at; a header has a few dozen
MAX_EXTRA = 4  # bands beyond the colours, each of which takes memory
MAX_BITS = 16  # of integers; libjxl returns wider ones as floats, 0..1
BAND = 256  # rows converted at a time
ALPHA, SPOT, BLACK, COLOUR_FILTER = 0, 2, 4, 5  # kinds of extra channels
RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width : height, by number from 1


class NotJpegXL(ValueError):
    """The bytes have no readable JPEG XL header; the message says what is wrong with it."""


@dataclass(frozen=True)
class JpegXLHeader:
    """`width`, `height`: after the orientation that the file states, which libjxl applies. `bits`: of integers, 0 for floats.

    `extra`: the kinds of the bands beyond the colours; `premultiplied`: whether colours are multiplied by the first alpha.
    """

    width: int
    height: int
    bits: int
    extra: tuple[int, ...]
    premultiplied: bool


def is_jpeg_xl(data: bytes) -> bool:
    return data.startswith((CODESTREAM, CONTAINER))


def header(data: bytes) -> JpegXLHeader:
    """The header of an encoded JPEG XL image (ISO/IEC 18181-1, annex D). Raises NotJpegXL."""
    bits = _Bits(_codestream(data))
    width, height = _size(bits)
    orientation, depth, extra, premultiplied = 1, 8, [], False
    if not bits.read(1):  # else all fields have their defaults
        if bits.read(1):
            orientation = 1 + bits.read(3)
            if bits.read(1):  # the size on a screen
                _size(bits)
            if bits.read(1):
                _preview_size(bits)
            if bits.read(1):  # an animation: ticks a second (numerator, denominator), loops, time codes
                bits.choose((100, 0), (1000, 0), (1, 10), (1, 30))
                bits.choose((1, 0), (1001, 0), (1, 8), (1, 10))
                bits.choose((0, 0), (0, 3), (0, 16), (0, 32))
                bits.read(1)
        depth = _depth(bits)
        bits.read(1)  # whether 16 bits are enough for the decoder's buffers
        count = bits.choose((0, 0), (1, 0), (2, 4), (1, 12))
        if count > MAX_EXTRA:
            raise NotJpegXL(f"it has {count} bands beyond its colours, up to {MAX_EXTRA} are accepted")
        for _ in range(count):
            kind, associated = _extra_channel(bits)
            premultiplied = associated if kind == ALPHA and ALPHA not in extra else premultiplied
            extra.append(kind)
    if orientation >= 5:
        width, height = height, width
    return JpegXLHeader(width, height, depth, tuple(extra), premultiplied)


def decode(data: bytes, stated: JpegXLHeader) -> np.ndarray:
    """H x W x 3 uint8 RGB of the first frame, upright. Raises ImageError for damage, CMYK, and missing imagecodecs."""
    if BLACK in stated.extra:
        raise ImageError("a JPEG XL in CMYK is not accepted; write RGB")
    try:
        from imagecodecs import jpegxl_decode
    except ImportError as error:
        raise ImageError(INSTALL) from error
    try:
        values: np.ndarray = jpegxl_decode(data, index=0, numthreads=1)
    except (RuntimeError, ValueError) as error:
        raise ImageError(f"damaged or truncated JPEG XL: {one_line(error)}") from error
    if values.ndim == 2:
        values = values[..., None]
    elif stated.extra and ALPHA not in stated.extra and values.shape != (stated.height, stated.width, 3):
        values = values[0, ..., None]  # grey, and other bands behind it
    if values.shape[:2] != (stated.height, stated.width):
        raise ImageError(f"damaged JPEG XL: {stated.width} x {stated.height} by its header, decoded to {values.shape}")
    floats = values.dtype.kind == "f"
    mode = "RGB" if values.shape[2] in (1, 3) else "RGBa" if stated.premultiplied else "RGBA"
    colours = ColourInterpretation([], 255 if floats else 2**stated.bits - 1, mode)
    pixels = np.empty((stated.height, stated.width, 3), np.uint8)
    for top in range(0, stated.height, BAND):
        part = np.moveaxis(values[top : top + BAND], 2, 0)
        pixels[top : top + BAND] = colours.rgb(_nominal(part) if floats else part)
    return pixels


def _nominal(values: np.ndarray) -> np.ndarray:
    """JPEG XL's floats, in which 0 is black and 1 is white, as uint8."""
    return (np.nan_to_num(values.astype(np.float32)).clip(0, 1) * 255).round().astype(np.uint8)


def _codestream(data: bytes) -> bytes:
    """The start of the codestream behind its signature, out of the boxes of a container."""
    if data.startswith(CONTAINER):
        parts, at = b"", 0
        while at + 8 <= len(data) and len(parts) < HEADER_BYTES:
            length, kind, head = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
            if length == 1:
                length, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
            end = at + length if length else len(data)
            if end < at + head:
                break
            if kind in (b"jxlc", b"jxlp"):
                first = at + head + (4 if kind == b"jxlp" else 0)  # the part's number
                parts += data[first : min(end, first + HEADER_BYTES)]
            at = end
        data = parts
    if not data.startswith(CODESTREAM):
        raise NotJpegXL("it holds no codestream")
    return data[2:HEADER_BYTES]


class _Bits:
    """Reads numbers of some bits each, the lowest bit first."""

    def __init__(self, data: bytes) -> None:
        self.value, self.length, self.at = int.from_bytes(data, "little"), 8 * len(data), 0

    def read(self, count: int) -> int:
        if self.at + count > self.length:
            raise NotJpegXL("its header is cut off")
        self.at += count
        return (self.value >> (self.at - count)) & ((1 << count) - 1)

    def choose(self, *offers: tuple[int, int]) -> int:
        """Two bits choose one of four (least value, bits of what is added)."""
        least, count = offers[self.read(2)]
        return least + self.read(count)


def _size(bits: _Bits) -> tuple[int, int]:
    """Width and height."""
    small = bits.read(1)

    def side() -> int:
        return 8 * (1 + bits.read(5)) if small else bits.choose((1, 9), (1, 13), (1, 18), (1, 30))

    height = side()
    ratio = bits.read(3)
    return (_ratio(height, ratio) if ratio else side()), height


def _preview_size(bits: _Bits) -> None:
    eighths = bits.read(1)

    def side() -> int:
        offers = ((16, 0), (32, 0), (1, 5), (33, 9)) if eighths else ((1, 6), (65, 8), (321, 10), (1345, 12))
        return bits.choose(*offers)

    side()
    if not bits.read(3):
        side()


def _ratio(height: int, ratio: int) -> int:
    across, down = RATIOS[ratio - 1]
    return height * across // down


def _depth(bits: _Bits) -> int:
    """Bits of an integer sample; 0 for floats, and for integers that libjxl returns as floats."""
    if bits.read(1):
        bits.choose((32, 0), (16, 0), (24, 0), (1, 6))
        bits.read(4)
        return 0
    depth = bits.choose((8, 0), (10, 0), (12, 0), (1, 6))
    return depth if depth <= MAX_BITS else 0


def _extra_channel(bits: _Bits) -> tuple[int, bool]:
    """The kind of a band beyond the colours, and whether it is an alpha that colours are multiplied by."""
    if bits.read(1):
        return ALPHA, False
    kind = bits.choose((0, 0), (1, 0), (2, 4), (18, 6))
    _depth(bits)
    bits.choose((0, 0), (3, 0), (4, 0), (1, 3))  # its resolution
    for _ in range(bits.choose((0, 0), (0, 4), (16, 5), (48, 10))):  # its name
        bits.read(8)
    associated = bool(bits.read(1)) if kind == ALPHA else False
    if kind == SPOT:
        bits.read(64)  # a colour and its solidity, four half floats
    if kind == COLOUR_FILTER:
        bits.choose((1, 0), (0, 2), (3, 4), (19, 8))
    return kind, associated
