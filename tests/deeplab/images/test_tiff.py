"""TIFFs of every kind that GDAL writes: the pixels are those that numpy makes of what was written, or a refusal with a reason."""

from __future__ import annotations

import itertools
import re
import struct
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from deeplab.errors import ImageError
from deeplab.images import gdal_raster, tiff
from deeplab.images.decoding import decode, header

rasterio = pytest.importorskip("rasterio", reason="no GDAL: pip install -e '.[large]' brings rasterio")

HEIGHT, WIDTH = 33, 41
TILES = {"tiled": True, "blockxsize": 16, "blockysize": 16}


def written(bands: np.ndarray, **options: Any) -> bytes | None:
    """Bands as GDAL's TIFF; None for options that GDAL refuses together."""
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype.name}
    try:
        with warnings.catch_warnings(action="ignore"), rasterio.io.MemoryFile() as memory:
            with memory.open(driver="GTiff", **shape, **options) as file:
                file.write(bands)
            return bytes(memory.read())
    except rasterio.errors.RasterioError:
        return None


@dataclass(frozen=True)
class Kind:
    dtype: str
    bits: int
    bands: int
    photometric: str | None
    alpha: str | None

    def values(self, rng: np.random.Generator) -> np.ndarray:
        values = rng.integers(0, 2**self.bits, (self.bands, HEIGHT, WIDTH)).astype(self.dtype)
        if self.blended:  # no colour is more than its alpha
            values[self.alpha_band] |= 1 << (self.bits - 1)
            for band in self.colour_bands:
                values[band] //= 2
        return values

    @property
    def options(self) -> dict[str, Any]:
        usual = {"photometric": self.photometric, "alpha": self.alpha, "nbits": self.bits if self.bits not in (8, 16) else None}
        return {name: value for name, value in usual.items() if value is not None}

    @property
    def colour(self) -> str:
        """GDAL takes three or four bands of 8 bits for RGB by itself, and all others for grey."""
        return self.photometric or ("RGB" if self.dtype == "uint8" and self.bands in (3, 4) else "MINISBLACK")

    @property
    def alpha_band(self) -> int:
        """The first band behind the colours that the tags speak of, 0 where it is no alpha."""
        first = {"RGB": 3, "CMYK": 4}.get(self.colour, 1)
        return first if self.bands > first and self.alpha in ("YES", "premultiplied") else 0

    @property
    def blended(self) -> bool:
        return self.alpha == "premultiplied" and self.alpha_band > 0

    @property
    def colour_bands(self) -> list[int]:
        if self.colour == "CMYK":
            return [0, 1, 2, 3]
        several = self.colour == "RGB" or (self.colour == "MINISBLACK" and self.bands >= 3 and not self.alpha_band)
        return [0, 1, 2] if several else [0]

    def golden(self, values: np.ndarray) -> np.ndarray:
        """H x W x 3 floats of 0..255, by the rules that docs/archives.md states."""
        byte = values >> (self.bits - 8) if self.bits >= 8 else np.round(values * (255 / (2**self.bits - 1)))
        planes = byte.astype(float)[self.colour_bands]
        if self.colour == "CMYK":
            return np.moveaxis((255 - planes[:3]) * (255 - planes[3]) / 255, 0, -1)
        if self.colour == "MINISWHITE":
            planes = 255 - planes
        if self.blended:
            planes = planes + 255 - byte[self.alpha_band]
        return np.moveaxis(np.broadcast_to(planes, (3, HEIGHT, WIDTH)), 0, -1)


DEPTHS = [*(("uint8", bits) for bits in range(1, 9)), *(("uint16", bits) for bits in (9, 12, 15, 16))]
PHOTOMETRICS = (None, "MINISBLACK", "MINISWHITE", "RGB", "CMYK")
# How the same samples may lie in a file; the last four have what Pillow and GDAL do each in a way of its own.
STORED: list[dict[str, Any]] = [
    {"compress": "none"},
    {"compress": "none", "endianness": "BIG", "bigtiff": "YES"},
    {"compress": "packbits", "endianness": "BIG"},
    {"compress": "lzw", **TILES},
    {"compress": "lzw", "predictor": 2, "endianness": "BIG"},
    {"compress": "deflate", "predictor": 2, "blockysize": 5},
    {"compress": "zstd", "bigtiff": "YES"},
    {"compress": "lzma", "endianness": "BIG", **TILES},
    {"compress": "lerc"},
]


def kinds(dtype: str, bits: int) -> Iterator[Kind]:
    for bands, photometric, alpha in itertools.product(
        (1, 2, 3, 4, 5), PHOTOMETRICS, (None, "unspecified", "YES", "premultiplied")
    ):
        fits = bands >= {"RGB": 3, "CMYK": 4}.get(photometric or "", 1)
        unclear = (photometric, alpha) == ("MINISWHITE", "premultiplied")
        if fits and not unclear and not (alpha and (bands in (1, 3) or photometric == "CMYK")):
            yield Kind(dtype, bits, bands, photometric, alpha)


def files(dtype: str, bits: int) -> Iterator[tuple[Kind, np.ndarray, dict[str, Any], bytes]]:
    """Every kind of these samples in planes and side by side, each stored in two ways, which go round."""
    rng, ways = np.random.default_rng(bits), itertools.cycle(STORED)
    for kind in kinds(dtype, bits):
        values = kind.values(rng)
        for interleave, _ in itertools.product(("pixel", "band"), range(2)):
            options = {"interleave": interleave, **next(ways)}
            data = written(values, **kind.options, **options)
            if data is not None and not (options["compress"] == "lerc" and bits not in (8, 16)):  # GDAL itself loses their bits
                yield kind, values, options, data


@pytest.mark.parametrize(("dtype", "bits"), DEPTHS)
def test_pixels_are_those_that_were_written(dtype: str, bits: int) -> None:
    seen = 0
    for kind, values, options, data in files(dtype, bits):
        pixels = decode(data)
        # An alpha is multiplied in and divided out in bytes.
        allowed = 2 if kind.blended or kind.colour == "CMYK" else 0
        assert np.abs(pixels - kind.golden(values)).max() <= allowed, (kind, options)
        seen += 1
    assert seen > 50


def test_without_gdal_every_file_has_the_same_pixels_or_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    depths = (("uint8", 8), ("uint16", 16))
    cases = [(data, decode(data)) for dtype, bits in depths for *_, data in files(dtype, bits)]
    monkeypatch.setitem(sys.modules, "rasterio.errors", None)
    outcome: Counter[str] = Counter()
    for data, expected in cases:
        try:
            np.testing.assert_array_equal(decode(data), expected)
            outcome["same"] += 1
        except ImageError as error:
            outcome[re.sub(r"a TIFF of \d x \d+-bit unsigned samples( in planes)?, photometric \d", "TIFF", str(error))] += 1
    assert set(outcome) == {"same", f"TIFF {gdal_raster.INSTALL}"}
    assert min(outcome.values()) > 50


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint32", "int32"])
def test_grey_that_has_no_scale_takes_the_range_that_it_uses(dtype: str) -> None:
    rng = np.random.default_rng(1)
    for (photometric, count), stored, interleave in itertools.product(
        (("MINISBLACK", 1), ("MINISBLACK", 2), ("MINISWHITE", 1)), STORED, ("pixel", "band")
    ):
        values = (rng.random((count, HEIGHT, WIDTH)) * 200 - (0 if dtype[0] == "u" else 100)) * (1 if dtype == "int8" else 100)
        values = np.clip(values, -128, 127).astype(dtype) if dtype == "int8" else values.astype(dtype)
        if dtype == "uint32":
            values[0, 0, 0] = 2**32 - 1
        data = written(values, photometric=photometric, interleave=interleave, **stored)
        if data is None:
            continue
        grey = values[0].astype(float)
        low = 0.0 if dtype == "uint32" else grey.min()
        golden = (grey - low) * 255 / (grey.max() - low)
        golden = 255 - golden if photometric == "MINISWHITE" else golden
        assert np.abs(decode(data) - golden[..., None]).max() <= 0.51, (stored, photometric, interleave, count)


REFUSED = {
    "1 x 32-bit floating-point": ("float32", 1, "which value is white; .*gdal_translate -ot Byte -scale"),
    "3 x 64-bit floating-point": ("float64", 3, "which value is white; .*gdal_translate -ot Byte -scale"),
    "4 x 16-bit signed": ("int16", 4, "colours are unsigned samples of 1 to 16 bits"),
    "1 x 64-bit": ("complex64", 1, "no integers of one depth"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_samples_that_are_no_colours_are_refused_as_what_they_are(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype, count, reason = REFUSED[words]
    data = written(np.ones((count, 8, 8), dtype), photometric="MINISBLACK")
    assert data is not None
    with pytest.raises(ImageError, match=f"^a TIFF of {words}.* is not accepted: .*{reason}"):
        decode(data)
    if "floating" in words:  # whatever is installed, the reason is not that GDAL is missing
        monkeypatch.setitem(sys.modules, "rasterio.errors", None)
        with pytest.raises(ImageError, match=reason):
            decode(data)


def test_white_that_is_zero_and_multiplied_by_alpha_is_refused() -> None:
    data = written(np.ones((2, 8, 8), np.uint8), photometric="MINISWHITE", alpha="premultiplied")
    assert data is not None
    with pytest.raises(ImageError, match="white is zero"):
        decode(data)


def test_palettes_of_every_depth_keep_their_colours() -> None:
    rng = np.random.default_rng(2)
    for (dtype, bits), stored in itertools.product(
        (("uint8", 1), ("uint8", 2), ("uint8", 4), ("uint8", 8), ("uint16", 16)), STORED
    ):
        colours = rng.integers(0, 256, (2**bits, 3))
        values = rng.integers(0, 2**bits, (1, HEIGHT, WIDTH)).astype(dtype)
        shape = {"count": 1, "height": HEIGHT, "width": WIDTH, "dtype": dtype, "photometric": "PALETTE"}
        depth = {"nbits": bits} if bits < 8 else {}
        if (depth and stored["compress"] == "lerc") or (bits == 16 and stored not in STORED[:2]):  # 65,536 colours take a second
            continue
        with warnings.catch_warnings(action="ignore"), rasterio.io.MemoryFile() as memory:
            try:
                with memory.open(driver="GTiff", **shape, **depth, **stored) as file:
                    file.write_colormap(1, {index: (*colour, 255) for index, colour in enumerate(colours.tolist())})
                    file.write(values)
            except rasterio.errors.RasterioError:
                continue
            data = memory.read()
        np.testing.assert_array_equal(decode(data), colours[values[0]], str((bits, stored)))


def test_bands_that_are_named_by_colour_are_taken_in_whatever_order() -> None:
    values = np.random.default_rng(3).integers(0, 65536, (5, HEIGHT, WIDTH)).astype(np.uint16)
    names = [getattr(rasterio.enums.ColorInterp, name) for name in ("blue", "green", "red", "undefined", "alpha")]
    shape = {"count": 5, "height": HEIGHT, "width": WIDTH, "dtype": "uint16"}
    with warnings.catch_warnings(action="ignore"), rasterio.io.MemoryFile() as memory:
        with memory.open(driver="GTiff", **shape) as file:
            file.write(values)
            file.colorinterp = names
        data = memory.read()
    np.testing.assert_array_equal(decode(data), np.moveaxis(values[[2, 1, 0]] >> 8, 0, -1))


LOSSLESS = (
    ({"compress": "ccittfax4", "nbits": 1}, 1, 1),
    ({"compress": "ccittfax3", "nbits": 1, "photometric": "MINISWHITE"}, 1, 1),
    ({"compress": "webp", "webp_lossless": True}, 3, 8),
    ({"compress": "lerc_zstd", "interleave": "band"}, 3, 8),
)


@pytest.mark.parametrize(("options", "count", "bits"), LOSSLESS)
def test_codings_of_one_kind_of_picture_alone(options: dict[str, Any], count: int, bits: int) -> None:
    values = np.random.default_rng(6).integers(0, 2**bits, (count, HEIGHT, WIDTH)).astype(np.uint8)
    data = written(values, **options)
    if data is None:
        pytest.skip(f"this GDAL does not write {options['compress']}")
    kind = Kind("uint8", bits, count, options.get("photometric"), None)
    np.testing.assert_array_equal(decode(data), kind.golden(values))


@pytest.mark.parametrize("options", [{}, {"photometric": "YCBCR"}, {"interleave": "band"}, TILES])
def test_jpeg_within_a_tiff_is_what_was_written_but_for_its_loss(options: dict[str, Any]) -> None:
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    values = np.stack([rows * 7, columns * 6, rows * 3 + columns * 3]).astype(np.uint8)
    data = written(values, compress="jpeg", jpeg_quality=95, **options)
    assert data is not None
    assert np.abs(decode(data) - np.moveaxis(values, 0, -1).astype(float)).mean() < 4


def test_lab_in_planes_is_lab_side_by_side() -> None:
    values = np.random.default_rng(7).integers(0, 256, (3, HEIGHT, WIDTH)).astype(np.uint8)
    by_pillow, by_gdal = (written(values, photometric="CIELAB", interleave=way) for way in ("pixel", "band"))
    assert by_pillow is not None and by_gdal is not None
    np.testing.assert_array_equal(decode(by_gdal), decode(by_pillow))


def test_threads_decode_at_once() -> None:
    rng = np.random.default_rng(8)
    values = [rng.integers(0, 65536, (5, 100 + number, 90)).astype(np.uint16) for number in range(24)]
    encoded = [written(each, compress="lzw", interleave="band") for each in values]
    with ThreadPoolExecutor(8) as pool:
        for pixels, each in zip(pool.map(decode, encoded), values, strict=True):
            np.testing.assert_array_equal(pixels, np.moveaxis(each[:3] >> 8, 0, -1))


def turned(data: bytes, orientation: int) -> bytes:
    """A little-endian TIFF of one band whose tag of planes, which says nothing there, is made into one of orientation."""
    at = data.index(struct.pack("<HHI", 284, 3, 1))
    return data[:at] + struct.pack("<HHIH", 274, 3, 1, orientation) + data[at + 10 :]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_gdal_follows_an_orientation_as_pillow_does(orientation: int) -> None:
    grey = np.random.default_rng(4).integers(0, 4096, (1, HEIGHT, WIDTH)).astype(np.uint16)
    by_pillow, by_gdal = (written(values, **depth) for values, depth in ((grey * 16, {}), (grey, {"nbits": 12})))
    assert by_pillow is not None and by_gdal is not None
    assert [tiff.pillow_reads(tiff.layout(data)) for data in (by_pillow, by_gdal)] == [True, False]
    expected = decode(turned(by_pillow, orientation))
    np.testing.assert_array_equal(decode(turned(by_gdal, orientation)), expected)
    stated = header(turned(by_gdal, orientation))
    assert stated is not None and (stated.height, stated.width, stated.orientation) == (*expected.shape[:2], orientation)


def planes(side: int, **options: Any) -> bytes:
    data = written(np.zeros((3, side, side), np.uint16), interleave="band", **options)
    assert data is not None
    return data


def test_limits_hold_for_what_gdal_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = planes(8000, compress="deflate", **{**TILES, "blockxsize": 512, "blockysize": 512})
    assert len(bomb) < 2_000_000
    with pytest.raises(ImageError, match="64,000,000 pixels, over the limit of 60,000,000"):
        decode(bomb)
    stated = header(bomb)
    assert stated is not None and stated.pixels == 64_000_000
    monkeypatch.setattr(gdal_raster, "MAX_BLOCK_BYTES", 1000)
    with pytest.raises(ImageError, match=r"blocks of up to 1,000 bytes.*TILED=YES"):
        decode(planes(50, compress="deflate"))


def test_damage_to_what_gdal_reads_is_a_reason_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    values = np.random.default_rng(5).integers(0, 65536, (3, 200, 200)).astype(np.uint16)
    for options in ({"compress": "deflate", **TILES}, {"compress": "lzw", "interleave": "band"}, {}):
        data = written(values, **options)
        assert data is not None
        for broken in (data[: len(data) // 2], data[:-5000], data[:60], data[:8]):
            with pytest.raises(ImageError, match=r"^[^\n]*TIFF[^\n]*$") as caught:
                decode(broken)
            assert "accepted format" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_tiff_says_its_layout_or_why_not() -> None:
    picture = written(np.zeros((5, 7, 9), np.uint16), interleave="band", compress="zstd", bigtiff="YES", endianness="BIG")
    assert picture is not None
    stored = tiff.layout(picture)
    assert (stored.width, stored.height, stored.samples, stored.bits, stored.planes) == (9, 7, 5, 16, True)
    assert (stored.big_endian, stored.big_tiff, stored.compression, stored.extra) == (True, True, 50000, (0, 0, 0, 0))
    assert str(stored) == "5 x 16-bit unsigned samples in planes, photometric 1"
    for length in range(0, 180, 3):
        with pytest.raises(tiff.NotTiff, match=r"directory|start"):
            tiff.layout(picture[:length])
