"""The samples of a JPEG 2000, by its header: of colours with more than 8 bits, Pillow turns the brightest into black.

It rounds them to 8 bits without a bound, so that 255.5 becomes 256, which is 0. GDAL reads those files.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

CONTAINER = b"\0\0\0\x0cjP  \r\n\x87\n"
START = b"\xff\x4f\xff\x51"  # of a codestream, and of its header (SIZ)
SYCC = b"colr\x01\0\0\0\0\0\x12"  # a colour specification by number: YCbCr
SEARCHED = 1 << 20  # bytes in which a container's codestream starts


@dataclass(frozen=True)
class Samples:
    """`bits`: the most of any component; `plain`: all are unsigned, equally deep, of full resolution, and no YCbCr."""

    components: int
    bits: int
    plain: bool


def samples(data: bytes) -> Samples | None:
    """None for another format or a header that cannot be read."""
    if not data.startswith((CONTAINER, START)):
        return None
    at = data.find(START, 0, SEARCHED)
    try:
        (count,) = struct.unpack_from(">H", data, at + 40)
        fields = struct.unpack_from(f">{3 * count}B", data, at + 42)
    except struct.error:
        return None
    depths = fields[::3]
    full = set(fields[1::3]) | set(fields[2::3]) == {1}
    plain = len(set(depths)) == 1 and depths[0] < 0x80 and full and SYCC not in data[:at]
    return Samples(count, max((depth & 0x7F) + 1 for depth in depths), plain) if at >= 0 and count else None
