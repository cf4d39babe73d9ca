"""Rows of large images: the pixels are those that decoding whole gives, each row is decoded once, damage is a reason."""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab.errors import ImageError
from deeplab.images import gdal_raster
from deeplab.images.decoding import decode, header
from deeplab.images.row_windows import LargeImage, reduced

rasterio = pytest.importorskip("rasterio", reason="no GDAL: pip install -e '.[large]' brings rasterio")

HEIGHT, WIDTH = 50, 70
PHOTO = Path(__file__).parents[3] / "examples/pets/images/Abyssinian_105.jpg"
RGB = np.asarray(Image.open(PHOTO).resize((WIDTH, HEIGHT)))
GREY = np.ascontiguousarray(RGB[..., 0])
GREY16 = (GREY.astype(np.uint16) << 8) + 7


def pillow(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(*bands: np.ndarray, **options: object) -> bytes:
    """A TIFF as GDAL writes it."""
    shape = {"height": bands[0].shape[0], "width": bands[0].shape[1], "count": len(bands), "dtype": bands[0].dtype}
    with rasterio.io.MemoryFile() as memory:
        with warnings.catch_warnings(action="ignore"), memory.open(driver="GTiff", **shape, **options) as file:
            file.write(np.stack(bands))
        return memory.read()


def picture(array: np.ndarray, mode: str | None = None) -> Image.Image:
    return Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)


PALETTE = picture(RGB).quantize(16)
RED, GREEN, BLUE = np.moveaxis(RGB, 2, 0)
KEY = tuple(int(value) for value in RGB[3, 3])
TILED = {"tiled": True, "blockxsize": 16, "blockysize": 16}
FILES = {
    "png grey": lambda: pillow(picture(GREY), "PNG"),
    "png bits": lambda: pillow(picture(GREY, "1"), "PNG"),
    "png 16 bits": lambda: pillow(picture(GREY16), "PNG"),
    "png palette": lambda: pillow(PALETTE, "PNG"),
    "png palette with a transparent entry": lambda: pillow(PALETTE, "PNG", transparency=3),
    "png colour key": lambda: pillow(picture(RGB), "PNG", transparency=KEY),
    "png grey key": lambda: pillow(picture(GREY), "PNG", transparency=int(GREY[3, 3])),
    "png grey and alpha": lambda: pillow(picture(np.dstack([GREY, GREEN])), "PNG"),
    "png rgba": lambda: pillow(picture(np.dstack([RGB, GREY])), "PNG"),
    "tiff grey": lambda: pillow(picture(GREY), "TIFF"),
    "tiff bits": lambda: pillow(picture(GREY, "1"), "TIFF", compression="group4"),
    "tiff palette": lambda: pillow(PALETTE, "TIFF"),
    "tiff 16 bits": lambda: pillow(picture(GREY16), "TIFF"),
    "tiff rgba": lambda: pillow(picture(np.dstack([RGB, GREY])), "TIFF"),
    "tiff grey and alpha": lambda: pillow(picture(np.dstack([GREY, GREEN])), "TIFF"),
    "tiff one strip": lambda: pillow(picture(RGB), "TIFF", compression="tiff_lzw"),
    "tiff strips": lambda: tiff(RED, GREEN, BLUE, blockysize=3, compress="lzw"),
    "tiff planes": lambda: tiff(RED, GREEN, BLUE, interleave="band"),
    "tiff tiles": lambda: tiff(RED, GREEN, BLUE, compress="deflate", **TILED),
    "tiff tiles 16 bits": lambda: tiff(GREY16, GREY16 // 2, GREY16, photometric="RGB", **TILED),
    "tiff with near infrared": lambda: tiff(RED, GREEN, BLUE, GREY, photometric="RGB", alpha="unspecified"),
    "tiff alpha multiplied in": lambda: tiff(RED // 2, GREEN // 2, BLUE // 2, np.maximum(GREY, 128), photometric="RGB",
                                             alpha="premultiplied"),
    "tiff white is zero": lambda: tiff(GREY, photometric="MINISWHITE"),
    "tiff 4 bits": lambda: tiff(GREY // 16, nbits=4),
    "tiff 12 bits": lambda: tiff(GREY16 // 16, nbits=12),
    "tiff 16 bits white is zero": lambda: tiff(GREY16, photometric="MINISWHITE"),
    "tiff 16 bits alpha multiplied in": lambda: tiff(
        *(band // 2 for band in (GREY16, GREY16, GREY16)), np.maximum(GREY16, 32768), photometric="RGB", alpha="premultiplied"
    ),
    "tiff of bands": lambda: tiff(GREY16, GREY16 // 2, GREY16 // 3, GREY16, GREY16, interleave="band"),
    "tiff palette and a value for no data": lambda: pillow(PALETTE, "TIFF", tiffinfo={42113: "3"}),
    "tiff ink": lambda: pillow(picture(RGB, "CMYK"), "TIFF", compression="tiff_lzw"),
    "tiff ink in planes": lambda: tiff(RED, GREEN, BLUE, GREY, photometric="CMYK", interleave="band"),
    "tiff lab": lambda: pillow(Image.fromarray(RGB, "LAB"), "TIFF"),
    "tiff palette and alpha": lambda: pillow(PALETTE.convert("PA"), "TIFF"),
    "bigtiff": lambda: tiff(RED, GREEN, BLUE, bigtiff="YES"),
}  # fmt: skip


def rows_of(data: bytes, step: int = 7, keep: int = 30) -> np.ndarray:
    found = header(data)
    assert found is not None
    with LargeImage(data, found, keep) as image:
        return np.concatenate([image[top : top + step] for top in range(0, image.shape[0], step)])


@pytest.mark.parametrize("name", FILES)
def test_rows_are_those_of_the_decoded_image(name: str) -> None:
    data = FILES[name]()
    np.testing.assert_array_equal(rows_of(data), decode(data))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_rows_of_a_jpeg_differ_by_no_more_than_two_decoders_do(options: dict[str, object]) -> None:
    data = pillow(Image.open(PHOTO), "JPEG", quality=92, **options)
    assert np.abs(rows_of(data).astype(int) - decode(data)).mean() < 1.5


def test_rows_of_a_jpeg_within_a_tiff_differ_as_little() -> None:
    data = tiff(*np.moveaxis(np.asarray(Image.open(PHOTO)), 2, 0), compress="jpeg", photometric="YCBCR", jpeg_quality=92)
    assert np.abs(rows_of(data).astype(int) - decode(data)).mean() < 1.5


def test_every_row_is_decoded_once_as_long_as_slices_stay_near_the_lowest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gdal_raster, "ROWS", 4)
    data = FILES["png 16 bits"]()  # of rows; small files of 8 bits come as one block
    whole, read = decode(data), []
    original = gdal_raster.Raster.read
    monkeypatch.setattr(gdal_raster.Raster, "read", lambda self, *rows: read.append(rows) or original(self, *rows))
    with LargeImage(data, header(data), keep=20) as image:
        for top, bottom in [(0, 9), (5, 20), (0, 4), (12, 30), (11, 20), (25, 99)]:
            np.testing.assert_array_equal(image[top:bottom], whole[top:bottom])
        assert read == [(top, min(top + 4, HEIGHT)) for top in range(0, HEIGHT, 4)]
        assert sum(map(len, image.strips)) <= 25 + 4
        np.testing.assert_array_equal(image[2:11], whole[2:11])  # from further up, too, only not for nothing
        np.testing.assert_array_equal(image[40:50], whole[40:50])


def test_a_reduced_picture_is_every_nth_row_and_column() -> None:
    data = FILES["tiff tiles"]()
    np.testing.assert_array_equal(reduced(data, header(data), 3), decode(data)[::3, ::3])


@pytest.mark.parametrize("kind", ["tiff tiles", "tiff strips", "png", "jpeg"])
@pytest.mark.parametrize("damage", ["half is missing", "the end is missing"])
@pytest.mark.parametrize("content", ["noise", "smooth"])
def test_a_damaged_file_is_a_reason_in_one_line(kind: str, damage: str, content: str) -> None:
    bands = np.random.default_rng(0).integers(0, 256, (3, 600, 200), np.uint8)
    if content == "smooth":  # which compresses so well that few bytes hold many rows
        bands = np.stack([np.add.outer(np.arange(600), np.arange(200) * (band + 1)) for band in range(3)]).astype(np.uint8)
    whole = picture(np.ascontiguousarray(np.moveaxis(bands, 0, 2)))
    data = {
        "tiff tiles": lambda: tiff(*bands, compress="deflate", **TILED),
        "tiff strips": lambda: tiff(*bands),
        "png": lambda: pillow(whole, "PNG"),
        "jpeg": lambda: pillow(whole, "JPEG"),
    }[kind]()
    with pytest.raises(ImageError, match=r"^damaged or truncated: [^\n]+$"):
        rows_of(data[: len(data) // 2 if damage.startswith("half") else -100], keep=100)


def test_what_cannot_be_read_by_rows_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    turned = Image.Exif()
    turned[274] = 6
    refused = {
        "WEBP": pillow(picture(RGB), "WEBP"),
        "mode CMYK": pillow(picture(RGB, "CMYK"), "JPEG"),
        "the whole image's range": tiff(GREY.astype(np.int16)),
        "which value is white": tiff(GREY.astype(np.float32)),
        "EXIF orientation": pillow(picture(RGB), "JPEG", exif=turned),
    }
    for reason, data in refused.items():
        with pytest.raises(ImageError, match=f"{WIDTH * HEIGHT:,} pixels, which are read by rows: .*{reason}|50 x 70.*{reason}"):
            rows_of(data)
    monkeypatch.setattr(gdal_raster, "MAX_BLOCK_BYTES", 1000)
    with pytest.raises(ImageError, match="TILED=YES"):
        rows_of(FILES["tiff one strip"]())
    monkeypatch.setitem(sys.modules, "rasterio.errors", None)
    with pytest.raises(ImageError, match=r"deeplab-pipelines\[large\]"):
        rows_of(FILES["tiff grey"]())
