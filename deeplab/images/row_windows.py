"""TIFF, PNG and JPEG files that are too large to decode whole, as windows of rows."""

from __future__ import annotations

from collections import deque
from types import TracebackType

import numpy as np

from deeplab.errors import ImageError
from deeplab.images.decoding import Header
from deeplab.images.gdal_raster import Raster

FORMATS = ("TIFF", "PNG", "JPEG", "MPO")


class LargeImage:
    """An encoded image as an H x W x 3 uint8 RGB array that can be sliced by rows, image[top:bottom].

    Pixels are those of `deeplab.images.decoding.decode`. Every row is decoded once if no slice starts more than `keep` rows
    above the lowest row requested before; a slice from further up restarts the decoder, for PNG and JPEG at row 0.
    Memory: the encoded bytes, `keep` rows, and one row of the file's blocks. A context manager for one thread.

    Raises ImageError for other formats and modes, an EXIF orientation, blocks of more than MAX_BLOCK_BYTES across the
    image, and missing rasterio; slicing raises it for damage.
    """

    def __init__(self, encoded: bytes, header: Header, keep: int) -> None:
        reason = f"{header.width} x {header.height} is {header.pixels:,} pixels, which are read by rows: this"
        if header.format not in FORMATS:
            raise ImageError(f"{reason} takes TIFF, PNG and JPEG, not {header.format}")
        if header.orientation != 1:
            raise ImageError(f"{reason} does not follow an EXIF orientation (here {header.orientation}); turn the pixels")
        self.shape = (header.height, header.width, 3)
        self.keep = keep
        self.strips: deque[np.ndarray] = deque()  # the rows in memory: adjacent strips from row `first` to row `next`
        self.first = self.next = 0
        try:
            self.raster = Raster(encoded, header.format, header.mode)
        except ImageError as error:
            raise ImageError(str(error) if str(error).startswith("damaged") else f"{reason} {error}") from error
        if not self.raster.colours.white:
            self.raster.__exit__(None, None, None)
            raise ImageError(f"{reason} takes samples of up to 16 bits, not those that are scaled by the whole image's range")

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Rows start..stop - 1 (stop may lie beyond the end, as in an array): k x W x 3 uint8."""
        top, bottom = rows.start, min(rows.stop, self.shape[0])
        if top < self.first:
            self.strips.clear()
            self.first = self.next = top // self.raster.rows * self.raster.rows
        while self.next < bottom:
            self.strips.append(self.raster.read(self.next, min(self.next + self.raster.rows, self.shape[0])))
            self.next += len(self.strips[-1])
            while self.strips and self.first + len(self.strips[0]) <= min(top, bottom - self.keep):
                self.first += len(self.strips.popleft())
        parts, start = [], self.first
        for strip in self.strips:
            parts.append(strip[max(0, top - start) : max(0, bottom - start)])
            start += len(strip)
        return np.concatenate(parts)

    def __enter__(self) -> LargeImage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.strips.clear()
        self.raster.__exit__(kind, error, trace)


def reduced(encoded: bytes, header: Header, step: int) -> np.ndarray:
    """Every `step`-th row and column of a large image, from its first: h x w x 3 uint8 RGB. Raises ImageError."""
    with LargeImage(encoded, header, 0) as image:
        return np.concatenate([image[top : top + 1][:, ::step] for top in range(0, header.height, step)])
