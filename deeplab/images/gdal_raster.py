"""TIFF, PNG and JPEG read by rows through GDAL (rasterio, the extra `large`): images that are too large to decode whole,
and every TIFF and JPEG 2000 that Pillow does not read correctly."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from deeplab.errors import ImageError, one_line
from deeplab.images import tiff
from deeplab.images.colours import ColourInterpretation
from deeplab.images.tiff import TiffLayout

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

DRIVERS = {"TIFF": "GTiff", "PNG": "PNG", "JPEG": "JPEG", "MPO": "JPEG", "JPEG2000": "JP2OpenJPEG"}
INSTALL = "needs rasterio (pip install 'deeplab-pipelines[large]')"
# Bands of a PNG, JPEG or JPEG 2000 by Pillow's mode. CMYK is missing because GDAL converts it to RGB.
BANDS = {"1": 1, "L": 1, "I;16": 1, "I;16B": 1, "P": 1, "LA": 2, "RGB": 3, "RGBA": 4}
MISSING_CODEC = "missing codec"  # GDAL's words, before the codec's name or "of code" and its number
ROWS = 128  # read at a time, or as many as the file's own blocks have
MAX_BLOCK_BYTES = 400_000_000
GDAL = {
    "GDAL_CACHEMAX": 64_000_000,  # else a twentieth of the machine's memory
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "YES",  # else a truncated JPEG ends in grey
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
}


@contextmanager
def opened(encoded: bytes, driver: str) -> Iterator[DatasetReader]:
    """Encoded bytes as a rasterio dataset, without a copy. RasterioError for what `driver` does not read."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile

    # Never undone: all threads share the warning filters.
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    # The prefix keeps GDAL from converting CMYK and LAB to RGB by its own rules.
    prefix = "GTIFF_RAW:" if driver == "GTiff" else ""
    with (
        rasterio.Env(**GDAL),
        MemoryFile(encoded, filename="image") as memory,
        rasterio.open(prefix + memory.name, driver=driver) as file,
    ):
        yield file


def _interpret_tiff(file: DatasetReader, stored: TiffLayout) -> ColourInterpretation:
    """GDAL's bands are those of the file, except that JPEG's YCbCr arrives as RGB."""
    names = [colour.name for colour in file.colorinterp]
    inverted = stored.photometric == tiff.WHITE_IS_ZERO
    tiff.check_samples(stored)
    colours = _colour_bands(names, stored)
    if not colours:
        raise ImageError("is not accepted: its samples are no grey, palette, RGB, CMYK, or YCbCr (JPEG) or LAB of 8 bits")
    if not stored.white:
        if len(colours) > 1 or stored.photometric == tiff.PALETTE:
            raise ImageError("is not accepted: colours are unsigned samples of 1 to 16 bits")
        return ColourInterpretation(colours, 0, inverted=inverted)
    palette = None
    if stored.photometric == tiff.PALETTE:
        if len(stored.colours) != 3 << stored.bits:
            raise ImageError(f"is damaged: its colour map has {len(stored.colours)} values")
        palette = (np.array(stored.colours).reshape(3, -1).T >> 8).astype(np.uint8)
    if stored.photometric in (tiff.CMYK, tiff.LAB):
        return ColourInterpretation(colours, stored.white, "CMYK" if stored.photometric == tiff.CMYK else "LAB")
    if stored.alpha_applies and "alpha" in names:
        if inverted:
            raise ImageError("is not accepted: its white is zero and multiplied by alpha, which is ambiguous")
        return ColourInterpretation([*colours, names.index("alpha") + 1], stored.white, "RGBa", palette=palette)
    return ColourInterpretation(colours, stored.white, "RGB", inverted, palette)


def _colour_bands(names: list[str], stored: TiffLayout) -> list[int]:
    """The numbers of the bands that hold the picture's colours, by GDAL's names of the bands; empty if unknown."""
    if stored.photometric in (tiff.BLACK_IS_ZERO, tiff.RGB, tiff.YCBCR) and {"red", "green", "blue"} <= set(names):
        return [names.index(name) + 1 for name in ("red", "green", "blue")]
    if stored.photometric == tiff.BLACK_IS_ZERO:  # written by programs that do not name the colours of bands
        first_alpha = names.index("alpha") if "alpha" in names else len(names)
        return [1, 2, 3] if first_alpha >= 3 else [1]
    if stored.photometric == tiff.LAB:
        return [1, 2, 3] if stored.bits == 8 else []
    return {tiff.WHITE_IS_ZERO: [1], tiff.PALETTE: [1], tiff.CMYK: [1, 2, 3, 4]}.get(stored.photometric, [])


def _interpret_mode(file: DatasetReader, mode: str) -> ColourInterpretation:
    """A PNG, JPEG or JPEG 2000, by Pillow's mode."""
    if mode not in BANDS:
        raise ImageError(f"takes grey, palette and RGB of up to 16 bits, not mode {mode}")
    bands = list(range(1, BANDS[mode] + 1))
    bits = int(file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 16 if file.dtypes[0] == "uint16" else 8))
    if file.colorinterp[0].name == "palette":
        table = file.colormap(1)
        palette = np.zeros((256, 4), np.uint8)
        for index, colour in table.items():
            palette[index] = colour
        if (palette[list(table), 3] == 255).all():
            return ColourInterpretation(bands, palette=palette[:, :3])
        return ColourInterpretation(bands, mode="RGBA", palette=palette)
    transparent = file.driver == "PNG" and file.nodatavals[0] is not None and bits <= 8
    key = np.array(file.nodatavals[: len(bands)]) if transparent else None
    return ColourInterpretation(bands, 2**bits - 1, "RGBA" if mode in ("LA", "RGBA") else "RGB", key=key)


class Raster:
    """An open encoded image; `read` returns rows as the RGB that `deeplab.images.decoding.decode` returns.

    `rows`: how many to read at a time so that no block of the file is decoded twice. EXIF orientation is not applied.
    A context manager for one thread. Memory: the encoded bytes and one row of the file's blocks.

    Raises ImageError if rasterio is missing, for samples that are not accepted, for blocks of more than MAX_BLOCK_BYTES
    across the image, and for damaged files.
    """

    def __init__(self, encoded: bytes, format: str, mode: str = "") -> None:
        """`format`, `mode`: Pillow's names; a TIFF needs no mode."""
        try:
            from rasterio.errors import RasterioError
        except ImportError as error:
            raise ImageError(INSTALL) from error
        self.failures = (RasterioError, OSError)
        if format == "PNG":
            _require_end(encoded)
        with ExitStack() as stack:
            try:
                self.file = stack.enter_context(opened(encoded, DRIVERS[format]))
                self.height, self.width = self.file.height, self.file.width
                self.rows = self._rows()
                if format == "TIFF":
                    self.colours = _interpret_tiff(self.file, tiff.layout(encoded))
                else:
                    self.colours = _interpret_mode(self.file, mode)
            except self.failures as error:
                raise _damaged(error) from error
            self.open = stack.pop_all()

    def _rows(self) -> int:
        file, height = self.file, self.file.block_shapes[0][0]
        across = height * file.width * file.count * np.dtype(file.dtypes[0]).itemsize
        if across > MAX_BLOCK_BYTES:
            raise ImageError(
                f"takes blocks of up to {MAX_BLOCK_BYTES:,} bytes across the image, and here {height} rows in one "
                f"are {across:,}; write smaller ones (gdal_translate -co TILED=YES)"
            )
        return int(height * -(-ROWS // height))

    def read(self, top: int, bottom: int, limits: tuple[int, int] = (0, 0)) -> np.ndarray:
        """Rows top..bottom - 1 as k x W x 3 uint8 RGB. Raises ImageError for damage."""
        return self.colours.rgb(self._values(top, bottom), limits)

    def whole(self) -> np.ndarray:
        """H x W x 3 uint8 RGB. Raises ImageError for damage."""
        strips = [(top, min(top + self.rows, self.height)) for top in range(0, self.height, self.rows)]
        limits = (0, 0)
        if not self.colours.white:
            ranges = [(int(values.min()), int(values.max())) for values in (self._values(*strip) for strip in strips)]
            limits = min(low for low, _ in ranges), max(high for _, high in ranges)
        pixels = np.empty((self.height, self.width, 3), np.uint8)
        for top, bottom in strips:
            pixels[top:bottom] = self.read(top, bottom, limits)
        return pixels

    def _values(self, top: int, bottom: int) -> np.ndarray:
        try:
            return np.asarray(self.file.read(self.colours.bands, window=((top, bottom), (0, self.width))))
        except self.failures as error:
            raise _damaged(error) from error

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.open.close()


def _require_end(png: bytes) -> None:
    """ImageError for a PNG that is cut off: GDAL fills what is missing of smooth pictures with zeros, without an error."""
    at = 8
    while at + 12 <= len(png):
        length, kind = int.from_bytes(png[at : at + 4], "big"), png[at + 4 : at + 8]
        at += 12 + length
        if kind == b"IEND" and at <= len(png):
            return
    raise ImageError("damaged or truncated: a PNG that ends before its last chunk")


def _damaged(error: BaseException) -> ImageError:
    """The reason in GDAL's words, which are in the cause; rasterio's message only refers to it."""
    reason = one_line(error.__cause__ or error)
    if MISSING_CODEC in reason:
        codec = reason.split(MISSING_CODEC)[1].strip(" .").removeprefix("of ")
        return ImageError(
            f"is compressed by a codec that this GDAL lacks ({codec}); write it with gdal_translate -co COMPRESS=DEFLATE"
        )
    return ImageError(f"damaged or truncated: {reason}")
