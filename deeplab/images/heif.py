"""HEIF (HEIC), the format of phones: pillow-heif becomes a Pillow plugin when the first such file is read."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from PIL import Image

from deeplab.errors import ImageError

# Those of pillow-heif. AVIF has brands of its own, but shares the last two, which say only that a still picture is inside.
BRANDS = tuple(b"heic heix heim heis hevc hevx hevm hevs mif1 msf1".split())
PADDING = 63  # the most rows or columns that encoders add to fill their blocks
NOT_BUILT_IN = "has not been built in"  # libheif's words for a codec that it lacks
INSTALL = "HEIF (HEIC) needs pillow-heif (pip install pillow-heif)"


def is_heif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in BRANDS


def register() -> None:
    """Lets Pillow open HEIF files. Raises ImageError if pillow-heif is missing, which not every platform has."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise ImageError(INSTALL) from error
    if "HEIF" not in Image.OPEN:
        # One thread an image: the callers decode several images at once.
        register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)


def sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Width and height of each coded picture in the file: tiles, alpha and whole pictures before they are cropped.

    libheif decodes no picture that is larger than its size here, but the size that Pillow reports is the one after cropping.
    """
    for start, end in _boxes(data, b"meta", 0, len(data)):
        for properties in _boxes(data, b"iprp", start + 4, end):
            for container in _boxes(data, b"ipco", *properties):
                for at, past in _boxes(data, b"ispe", *container):
                    if past - at >= 12:
                        yield struct.unpack_from(">II", data, at + 4)


def check_tiles(image: Image.Image) -> None:
    """Raises ImageError if a picture has more tiles than it needs: a small file can name the same large tile 65,536 times."""
    tiling = image.info.get("tiling") if image.format == "HEIF" else None
    for count, tile, side in (("num_columns", "tile_width", "image_width"), ("num_rows", "tile_height", "image_height")):
        if tiling and (tiling[count] - 1) * tiling[tile] >= tiling[side]:
            raise ImageError(f"damaged: it is made of {tiling['num_columns']} x {tiling['num_rows']} tiles, more than fit into it")


def _boxes(data: bytes, kind: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the contents of the boxes of one kind start and end, among those that follow each other in start..end."""
    while start + 8 <= end:
        length, name = struct.unpack_from(">I4s", data, start)
        head = 8
        if length == 1 and start + 16 <= end:
            (length,), head = struct.unpack_from(">Q", data, start + 8), 16
        past = start + length if length else end
        if length and length < head:
            return
        if name == kind:
            yield start + head, min(past, end)
        start = past
