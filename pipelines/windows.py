"""TIFF, PNG and JPEG files that are too large to be decoded whole, read by rows through GDAL (rasterio)."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from deeplab.images import Header, ImageError, rgb

DRIVERS = {"TIFF": "GTiff", "PNG": "PNG", "JPEG": "JPEG", "MPO": "JPEG"}
# How many of a file's bands make a picture of Pillow's mode. Modes that are left out are ink, or have no range of their
# own: 32-bit samples are scaled by those of the whole picture.
BANDS = {"1": 1, "L": 1, "I;16": 1, "I;16B": 1, "P": 1, "LA": 2, "RGB": 3, "RGBX": 3, "RGBA": 4, "RGBa": 4}
ROWS = 128  # read at a time, or as many as the file's own blocks have
MAX_BLOCK_BYTES = 400_000_000
GDAL = {
    "GDAL_CACHEMAX": 64_000_000,  # else a twentieth of the machine's memory
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "YES",  # else a truncated JPEG ends in grey
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
}


@contextmanager
def opened(encoded: bytes, driver: str) -> Iterator[Any]:
    """Encoded bytes, where they are in memory, as a dataset of rasterio. RasterioError for what `driver` does not read."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile

    with rasterio.Env(**GDAL), MemoryFile(encoded, filename="image") as memory:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            file = memory.open(driver=driver)
        with file:
            yield file


class LargeImage:
    """An encoded image as an H x W x 3 uint8 RGB array of which slices of rows can be taken, image[top:bottom].

    Pixels are as `deeplab.images.decode` makes them. Every row is decoded once, provided that no slice starts more than
    `keep` rows above the lowest row that was asked for; for one from further up the decoder starts anew, which PNG and
    JPEG do at row 0. Memory: the encoded bytes, `keep` rows, and one row of the file's blocks. A context manager, for
    one thread.

    Raises ImageError for what cannot be read so: other formats and modes, an EXIF orientation, blocks of more than
    MAX_BLOCK_BYTES across the image; also where rasterio is missing, and from slices for damage.
    """

    def __init__(self, encoded: bytes, header: Header, keep: int) -> None:
        way = f"{header.width} x {header.height} is {header.pixels:,} pixels, which are read by rows: this"
        if header.format not in DRIVERS:
            raise ImageError(f"{way} takes TIFF, PNG and JPEG, not {header.format}")
        if header.mode not in BANDS:
            raise ImageError(f"{way} takes grey, palette and RGB of up to 16 bits, not mode {header.mode}")
        if header.orientation != 1:
            raise ImageError(f"{way} does not follow an EXIF orientation (here {header.orientation}); turn the pixels")
        try:
            from rasterio.errors import RasterioError
        except ImportError as error:
            raise ImageError(f"{way} needs rasterio (pip install 'deeplab-pipelines[large]')") from error
        self.shape = (header.height, header.width, 3)
        self.keep = keep
        self.strips: deque[np.ndarray] = deque()  # what is kept, adjacent, from row `first` to row `next`
        self.first = self.next = 0
        self.failures = (RasterioError, OSError)
        with ExitStack() as stack:
            try:
                self.file = stack.enter_context(opened(encoded, DRIVERS[header.format]))
            except self.failures as error:
                raise _damaged(error) from error
            self._look(header, way)
            self.open = stack.pop_all()

    def _look(self, header: Header, way: str) -> None:
        """How the file's samples become RGB, and how many rows to read at a time."""
        file, height = self.file, self.file.block_shapes[0][0]
        across = height * file.width * file.count * np.dtype(file.dtypes[0]).itemsize
        if across > MAX_BLOCK_BYTES:
            raise ImageError(
                f"{way} takes blocks of up to {MAX_BLOCK_BYTES:,} bytes across the image, and here {height} rows in one "
                f"are {across:,}; write smaller ones (gdal_translate -co TILED=YES)"
            )
        self.rows = height * -(-ROWS // height)
        self.mode, self.bands = header.mode, list(range(1, BANDS[header.mode] + 1))
        first, whole = file.tags(1, ns="IMAGE_STRUCTURE"), file.tags(ns="IMAGE_STRUCTURE")
        bits = int(first.get("NBITS", 8))
        self.scale = 255 // (2**bits - 1) if bits < 8 else 1
        self.inverted = whole.get("MINISWHITE") == "YES"
        self.palette = self.key = None
        if file.colorinterp[0].name == "palette":
            self.palette = np.zeros((256, 4), np.uint8)
            for index, colour in file.colormap(1).items():
                self.palette[index] = colour
            if (self.palette[list(file.colormap(1)), 3] == 255).all():
                self.palette = self.palette[:, :3]
        elif file.driver == "PNG" and file.nodatavals[0] is not None and file.dtypes[0] == "uint8":
            self.key = np.array(file.nodatavals[: len(self.bands)])  # the colour that is transparent

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Rows start..stop - 1 (stop may lie beyond the end, as in an array): k x W x 3 uint8."""
        top, bottom = rows.start, min(rows.stop, self.shape[0])
        if top < self.first:
            self.strips.clear()
            self.first = self.next = top // self.rows * self.rows
        while self.next < bottom:
            self.strips.append(self._read(self.next, min(self.next + self.rows, self.shape[0])))
            self.next += len(self.strips[-1])
            while self.strips and self.first + len(self.strips[0]) <= min(top, bottom - self.keep):
                self.first += len(self.strips.popleft())
        parts, start = [], self.first
        for strip in self.strips:
            parts.append(strip[max(0, top - start) : max(0, bottom - start)])
            start += len(strip)
        return np.concatenate(parts)

    def _read(self, top: int, bottom: int) -> np.ndarray:
        try:
            samples = self.file.read(self.bands, window=((top, bottom), (0, self.shape[1])))
        except self.failures as error:
            raise _damaged(error) from error
        if self.palette is not None:
            pixels = self.palette[samples[0]]
        else:
            if samples.dtype == np.uint16:
                samples = (samples >> 8).astype(np.uint8)
            if self.scale > 1:
                samples *= self.scale
            pixels = np.moveaxis(255 - samples if self.inverted else samples, 0, -1)
            if self.key is not None:
                pixels = np.where((pixels == self.key).all(-1, keepdims=True), np.uint8(255), pixels)
        if pixels.shape[2] == 1:
            return np.repeat(pixels, 3, axis=2)
        if pixels.shape[2] == 3:
            return np.ascontiguousarray(pixels)
        mode = self.mode if self.palette is None else "RGBA"
        return np.array(rgb(Image.frombytes(mode, pixels.shape[1::-1], np.ascontiguousarray(pixels).tobytes())))

    def __enter__(self) -> LargeImage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.strips.clear()
        self.open.close()


def reduced(encoded: bytes, header: Header, step: int) -> np.ndarray:
    """Every `step`-th row and column of a large image, from its first: h x w x 3 uint8 RGB. Raises ImageError."""
    with LargeImage(encoded, header, 0) as image:
        return np.concatenate([image[top : top + 1][:, ::step] for top in range(0, header.height, step)])


def _damaged(error: BaseException) -> ImageError:
    """GDAL's own words are in the cause; rasterio's say to look there."""
    return ImageError(f"damaged or truncated: {' '.join(str(error.__cause__ or error).split())[:200]}")
