"""Photos as phones, cameras, GIS programs and converters write them: each kind has the pixels that were written, or a reason.

HEIC is written by pillow-heif, JPEG XL, JPEG 2000 and AVIF by imagecodecs, TIFF by tifffile and GDAL. `test_tiff.py` has every
layout that GDAL writes.
"""

from __future__ import annotations

import io
import itertools
import re
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deeplab.errors import ImageError
from deeplab.images import tiff
from deeplab.images.decoding import decode, header
from deeplab.images.row_windows import LargeImage

imagecodecs = pytest.importorskip("imagecodecs", reason="pip install -e '.[dev]' brings it")
pillow_heif = pytest.importorskip("pillow_heif")
tifffile = pytest.importorskip("tifffile", reason="pip install -e '.[dev]' brings it")
rasterio = pytest.importorskip("rasterio", reason="no GDAL: pip install -e '.[large]' brings rasterio")

HEIGHT, WIDTH = 56, 72
RNG = np.random.default_rng(0)
RGBA = np.asarray(Image.fromarray(RNG.integers(0, 256, (6, 8, 4), np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))
RGB, GREY, ALPHA = np.ascontiguousarray(RGBA[..., :3]), np.ascontiguousarray(RGBA[..., 0]), RGBA[..., 3:]
DEEP = RNG.integers(0, 65536, (HEIGHT, WIDTH, 3), np.uint16)
TWELVE = DEEP >> 4  # 12 bits in 16
HALF = np.where(np.arange(HEIGHT)[:, None, None] < HEIGHT // 2, DEEP, np.uint16(0))
ON_WHITE = RGB * (ALPHA / 255) + 255 - ALPHA
PREMULTIPLIED = np.dstack([np.minimum(RGB, ALPHA), ALPHA])
GREY_RGB = np.repeat(GREY[..., None], 3, 2)

# What a file holds if its tag of orientation has this value.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[274] = orientation
    return tags


def by_pillow(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **options)
    return buffer.getvalue()


def heic(pixels: np.ndarray, **options: Any) -> bytes:
    """Lossless but for YCbCr, which is a level off now and then."""
    pillow_heif.register_heif_opener()
    return by_pillow(pixels, "HEIF", quality=-1, chroma=444, **options)


def deep_heic(mode: str, pixels: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_bytes(mode, (WIDTH, HEIGHT), pixels.tobytes()).save(buffer, quality=-1, chroma=444, **options)
    return buffer.getvalue()


def turned_heic(orientation: int, in_exif: int) -> bytes:
    """Turned by HEIF's own properties (irot, imir), while EXIF says `in_exif`."""
    tags = exif(orientation).tobytes()
    data = heic(STORED[orientation](RGB), exif=tags)
    assert data.count(tags[6:]) == 1 and (orientation == 1 or b"irot" in data or b"imir" in data)
    return data.replace(tags[6:], exif(in_exif).tobytes()[6:])


def renamed(data: bytes, brand: bytes) -> bytes:
    """A file whose main brand says less than those that it is compatible with, as Android writes it."""
    return data[:8] + brand + data[12:]


def jxl(pixels: np.ndarray, **options: Any) -> bytes:
    return bytes(imagecodecs.jpegxl_encode(pixels, **{"lossless": True, **options}))


def by_tifffile(pixels: np.ndarray, planes: bool = False, photometric: str = "rgb", **options: Any) -> bytes:
    buffer = io.BytesIO()
    stored = np.moveaxis(pixels, 2, 0) if planes else pixels
    layout = {"planarconfig": "separate" if planes else "contig"} if pixels.ndim == 3 else {}
    tifffile.imwrite(buffer, stored, photometric=photometric, metadata=None, **layout, **options)
    return buffer.getvalue()


def by_gdal(pixels: np.ndarray, tags: dict[str, str] | None = None, **options: Any) -> bytes:
    bands = np.moveaxis(pixels, 2, 0) if pixels.ndim == 3 else pixels[None]
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype.name}
    with warnings.catch_warnings(action="ignore"), rasterio.io.MemoryFile() as memory:
        with memory.open(driver="GTiff", **shape, **options) as file:
            file.write(bands)
            for band in range(len(bands) if tags else 0):
                file.update_tags(band + 1, **tags)
        return bytes(memory.read())


def stating(tag: int, kind: int, *values: Any) -> dict[str, Any]:
    return {"extratags": [(tag, kind, len(values), values if len(values) > 1 else values[0], True)]}


BYTE, SHORT, FLOAT, MAX_SAMPLE = 1, 3, 11, 341
Kind = tuple[Callable[[], bytes], "np.ndarray | str", int]  # the file; its pixels or the reason for which it is refused; levels off

PHONES: dict[str, Kind] = {
    "HEIC": (lambda: heic(RGB), RGB, 1),
    "HEIC, grey": (lambda: heic(GREY), GREY_RGB, 0),
    "HEIC of 10 bits": (lambda: deep_heic("RGB;16", DEEP), DEEP >> 8, 1),
    "HEIC of 12 bits": (lambda: deep_heic("RGB;16", DEEP, bit_depth=12), DEEP >> 8, 1),
    "HEIC with alpha": (lambda: heic(RGBA), ON_WHITE, 2),
    "HEIC of 10 bits with alpha": (lambda: deep_heic("RGBA;16", RGBA.astype(np.uint16) * 257), ON_WHITE, 2),
    "HEIC multiplied by alpha": (lambda: deep_heic("RGBa", PREMULTIPLIED), PREMULTIPLIED[..., :3] + 255 - ALPHA, 4),
    "HEIC in tiles": (lambda: heic(RGB, tile_size=64), RGB, 1),
    "HEIC named mif1": (lambda: renamed(heic(RGB), b"mif1"), RGB, 1),
    "HEIC, the second of three pictures is the primary one": (
        lambda: heic(GREY[:9, :9], save_all=True, append_images=[Image.fromarray(RGB), Image.fromarray(GREY)], primary_index=1),
        RGB,
        1,
    ),
    "HEIC, EXIF alone says that it is turned": (lambda: heic(RGB, exif=exif(6)), RGB, 1),
    **{f"HEIC turned by {n}, as EXIF says, too": (lambda n=n: turned_heic(n, n), RGB, 1) for n in range(2, 9)},
    "HEIC turned, EXIF says otherwise": (lambda: turned_heic(6, 1), RGB, 1),
    "HEIC not turned, EXIF says it is": (lambda: turned_heic(1, 8), RGB, 1),
    "AVIF of 10 bits": (lambda: imagecodecs.avif_encode(DEEP >> 6, level=100, bitspersample=10), DEEP >> 8, 1),
    "AVIF named mif1": (lambda: renamed(by_pillow(RGB, "AVIF", quality=100, subsampling="4:4:4"), b"mif1"), RGB, 4),
    "AVIF turned by its own property": (
        lambda: by_pillow(STORED[6](RGB), "AVIF", quality=100, subsampling="4:4:4", exif=exif(6)), RGB, 4
    ),
    "a video": (lambda: b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(99), "not an image of an accepted format", 0),
}  # fmt: skip

JPEG_XL: dict[str, Kind] = {
    "JPEG XL": (lambda: jxl(RGB), RGB, 0),
    "JPEG XL in a container": (lambda: jxl(RGB, usecontainer=True), RGB, 0),
    "JPEG XL, lossy": (lambda: jxl(RGB, lossless=False, level=97), RGB, 60),
    "JPEG XL, grey": (lambda: jxl(GREY), GREY_RGB, 0),
    "JPEG XL, grey with alpha": (lambda: jxl(np.dstack([GREY, ALPHA])), GREY_RGB * (ALPHA / 255) + 255 - ALPHA, 1),
    "JPEG XL with alpha": (lambda: jxl(RGBA), ON_WHITE, 1),
    "JPEG XL of 16 bits": (lambda: jxl(DEEP), DEEP >> 8, 0),
    "JPEG XL of 12 bits": (lambda: jxl(TWELVE, bitspersample=12), TWELVE >> 4, 0),
    "JPEG XL of floats, which have a white": (lambda: jxl((RGB / 255).astype(np.float32)), RGB, 0),
    "JPEG XL of half floats": (lambda: jxl((RGB / 255).astype(np.float16)), RGB, 0),
    "JPEG XL, grey and two other bands": (lambda: jxl(np.moveaxis(RGB, 2, 0), planar=True, photometric="gray"), GREY_RGB, 0),
    "JPEG XL of several frames": (lambda: jxl(np.stack([RGB, 255 - RGB])), RGB, 0),
    **{
        f"JPEG XL made of a JPEG that is turned by {n}": (
            lambda n=n: imagecodecs.jpegxl_encode_jpeg(
                by_pillow(STORED[n](RGB), "JPEG", quality=97, subsampling=0, exif=exif(n))
            ), RGB, 20
        ) for n in range(1, 9)
    },
}  # fmt: skip


def jp2(pixels: np.ndarray, bits: int, codec: str = "jp2") -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, level=0, codecformat=codec, bitspersample=bits, reversible=True))


RGB_COLOURS = b"colr\x01\0\0\0\0\0\x10"
DEEP_RGBA = np.dstack([DEEP, ALPHA.astype(np.uint16) * 257])
JPEG_2000: dict[str, Kind] = {
    "JPEG 2000, grey of 12 bits": (lambda: jp2(TWELVE[..., 0], 12), np.repeat(TWELVE[..., :1] >> 4, 3, 2), 0),
    "JPEG 2000 of 12 bits": (lambda: jp2(TWELVE, 12), TWELVE >> 4, 0),
    "JPEG 2000 of 16 bits": (lambda: jp2(DEEP, 16, "j2k"), DEEP >> 8, 0),
    "JPEG 2000 of 16 bits with alpha": (lambda: jp2(DEEP_RGBA, 16), (DEEP >> 8) * (ALPHA / 255) + 255 - ALPHA, 1),
    "JPEG 2000 of 12 bits, YCbCr": (
        lambda: jp2(TWELVE, 12).replace(RGB_COLOURS, RGB_COLOURS[:-1] + b"\x12"), "accepted if they are RGB, unsigned", 0
    ),
}  # fmt: skip

FLOATS = "which value is white; write bytes from the range that you choose"
TIFFS: dict[str, Kind] = {
    # 12 bits in 16, and how a file may say so; no file is brightened because it looks dark.
    "12 bits in 16, unsaid": (lambda: by_tifffile(TWELVE), TWELVE >> 8, 0),
    "12 bits in 16 by SMaxSampleValue": (lambda: by_tifffile(TWELVE, **stating(MAX_SAMPLE, SHORT, *[4095] * 3)), TWELVE >> 4, 0),
    "12 bits in 16, grey": (lambda: by_tifffile(TWELVE[..., 0], photometric="minisblack", **stating(MAX_SAMPLE, SHORT, 4095)),
                            np.repeat(TWELVE[..., :1] >> 4, 3, 2), 0),
    "12 bits in 16, in planes": (lambda: by_tifffile(TWELVE, True, **stating(MAX_SAMPLE, FLOAT, *[4095.0] * 3)), TWELVE >> 4, 0),
    "12 bits in 16 by GDAL's item NBITS": (lambda: by_gdal(TWELVE, {"NBITS": "12"}, photometric="RGB"), TWELVE >> 4, 0),
    "12 bits by BitsPerSample": (lambda: by_gdal(TWELVE, nbits=12), TWELVE >> 4, 0),
    "white is 3000": (lambda: by_tifffile(TWELVE, **stating(MAX_SAMPLE, SHORT, 3000, 3000, 2999)),
                      np.floor(np.minimum(TWELVE, 3000) * (255 / 3000) + 0.5), 0),
    "white is more than the samples hold": (lambda: by_tifffile(DEEP, **stating(MAX_SAMPLE, FLOAT, *[1e9] * 3)), DEEP >> 8, 0),
    "8 bits, and the brightest is 99": (lambda: by_tifffile(RGB, **stating(MAX_SAMPLE, SHORT, 99, 99, 99)), RGB, 0),
    # A fourth band: GDAL calls it alpha by default if samples have 8 bits.
    "near infrared that GDAL calls alpha": (lambda: by_gdal(RGBA), RGB, 0),
    "near infrared that nobody calls alpha": (lambda: by_gdal(np.dstack([DEEP, DEEP[..., 0]])), DEEP >> 8, 0),
    "alpha that is not multiplied in": (lambda: by_tifffile(RGBA, extrasamples=["unassalpha"]), RGB, 0),
    "alpha that is multiplied in": (lambda: by_tifffile(PREMULTIPLIED, extrasamples=["assocalpha"]),
                                    PREMULTIPLIED[..., :3] + 255 - ALPHA, 2),
    "blocks that GDAL leaves out as they are empty": (lambda: by_gdal(HALF, sparse_ok=True, photometric="RGB", blockysize=7),
                                                      HALF >> 8, 0),
    "the same, compressed": (lambda: by_gdal(HALF, sparse_ok=True, photometric="RGB", blockysize=7, compress="deflate"),
                             HALF >> 8, 0),
    "a raw file whose first picture is a preview": (lambda: by_tifffile(RGB, subfiletype=1), "first picture is a smaller copy", 0),
    "a DNG": (lambda: by_tifffile(RGB, **stating(50706, BYTE, 1, 4, 0, 0)), "first picture is a smaller copy, as in the raw", 0),
    "floats": (lambda: by_tifffile((GREY / 255).astype(np.float32), photometric="minisblack"), FLOATS, 0),
    "floats in colour": (lambda: by_gdal((RGB / 255).astype(np.float32)), FLOATS, 0),
    "half floats": (lambda: by_tifffile((RGB / 255).astype(np.float16)), FLOATS, 0),
    "JPEG XL within a TIFF": (lambda: by_tifffile(RGB, compression="jpegxl"), "a codec that this GDAL lacks .JXL.;", 0),
    "PNG within a TIFF": (lambda: by_tifffile(RGB, compression="png"), "lacks .code 34933.; .*COMPRESS=DEFLATE", 0),
}  # fmt: skip


def layouts() -> Iterator[tuple[str, Kind]]:
    """16-bit RGB in every way that programs lay it out."""
    for planes, compression, tile, order in itertools.product(
        (False, True), (None, "packbits", "lzw", "zlib", "zstd"), (None, (16, 32)), "<>"
    ):
        for predictor in (False, True) if compression in ("lzw", "zlib", "zstd") else (False,):
            rows = {} if tile else {"rowsperstrip": 5}
            options = {
                "planes": planes,
                "compression": compression,
                "tile": tile,
                "byteorder": order,
                "predictor": predictor,
                **rows,
            }
            yield f"16-bit RGB by tifffile: {options}", (lambda options=options: by_tifffile(DEEP, **options), DEEP >> 8, 0)
    for options in (
        {},
        {"photometric": "RGB"},
        {"interleave": "band"},
        {"interleave": "band", "photometric": "RGB", "compress": "lzw"},
    ):
        for tiles in ({}, {"tiled": True, "blockxsize": 16, "blockysize": 16}):
            yield f"16-bit RGB by rasterio: {options | tiles}", (lambda o=options | tiles: by_gdal(DEEP, **o), DEEP >> 8, 0)


KINDS = {**PHONES, **JPEG_XL, **JPEG_2000, **TIFFS, **dict(layouts())}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_photo_has_the_pixels_that_were_written_or_a_reason(name: str) -> None:
    write, expected, allowed = KINDS[name]
    data = write()
    if isinstance(expected, str):
        with pytest.raises(ImageError, match=expected) as caught:
            decode(data)
        assert "damaged" not in str(caught.value) and "\n" not in str(caught.value)
        return
    pixels = decode(data)
    assert (pixels.shape, pixels.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
    error = np.abs(pixels - np.asarray(expected, float))
    assert error.max() <= allowed + 0.5 * (expected.dtype.kind == "f") and error.mean() < 2
    stated = header(data)
    size = (stated.height, stated.width) if stated is not None else None
    assert size in ((HEIGHT, WIDTH), (WIDTH, HEIGHT)) and (size == (HEIGHT, WIDTH) or stated.orientation >= 5), stated


@pytest.mark.parametrize("name", [name for name, kind in TIFFS.items() if not isinstance(kind[1], str)])
def test_rows_of_a_large_tiff_are_those_of_the_decoded_one(name: str) -> None:
    data = TIFFS[name][0]()
    stated = header(data)
    assert stated is not None
    with LargeImage(data, stated, keep=10) as image:
        rows = [image[top : top + 9] for top in range(0, HEIGHT, 9)]
    np.testing.assert_array_equal(np.concatenate(rows), decode(data))


def test_a_canon_raw_file_is_told_by_its_mark() -> None:
    data = by_tifffile(RGB)
    (start,) = struct.unpack_from("<I", data, 4)
    cr2 = data[:4] + struct.pack("<I", len(data)) + b"CR\x02\0" + data[12:] + data[start:]
    with pytest.raises(ImageError, match=r"^a TIFF of 3 x 8-bit unsigned samples.* is not accepted: its first picture"):
        decode(cr2)


def test_gdal_does_call_near_infrared_alpha() -> None:
    assert tiff.layout(by_gdal(RGBA)).extra == (tiff.ALPHA,)


def test_headers_of_jpeg_xl_say_the_size_that_is_decoded() -> None:
    sides = (1, 7, 8, 9, 16, 120, 160, 256, 257, 320, 513, 8200)
    for height, width in [*itertools.product(sides[:-1], sides[:-1]), (3, 8200), (8200, 3), (300, 400), (108, 192)]:
        data = jxl(np.zeros((height, width), np.uint8), effort=1)
        stated = header(data)
        assert stated is not None and (stated.height, stated.width) == (height, width) == imagecodecs.jpegxl_decode(data).shape


class Bits:
    """Writes the header of a JPEG XL by hand, as no encoder here writes its rarer fields."""

    def __init__(self) -> None:
        self.bits = ""

    def put(self, *fields: tuple[int, int]) -> Bits:
        """(value, number of bits), the lowest bit first."""
        for value, count in fields:
            self.bits += format(value, f"0{count}b")[::-1] if count else ""
        return self

    def codestream(self) -> bytes:
        padded = self.bits + "0" * (-len(self.bits) % 8)
        return b"\xff\x0a" + bytes(int(padded[at : at + 8][::-1], 2) for at in range(0, len(padded), 8)) + bytes(64)


def size_field(height: int, width: int) -> tuple[tuple[int, int], ...]:
    return (0, 1), (1, 2), (height - 1, 13), (0, 3), (1, 2), (width - 1, 13)


def test_every_field_of_a_jpeg_xl_header_is_passed_over_or_heeded() -> None:
    fields = Bits().put(*size_field(300, 500), (0, 1), (1, 1), (4, 3))  # orientation 5
    fields.put((1, 1), *size_field(30, 50))  # the size on a screen
    fields.put((1, 1), (1, 1), (2, 2), (9, 5), (0, 3), (0, 2))  # a preview of 10 x 2 blocks of 8
    fields.put((1, 1), (0, 2), (3, 2), (77, 10), (1, 2), (5, 3), (0, 1))  # an animation
    fields.put((0, 1), (3, 2), (13, 6), (1, 1))  # 14 bits
    fields.put((2, 2), (1, 4))  # three extra channels: a spot colour with a name, a colour filter, black
    fields.put((0, 1), (2, 2), (0, 4), (0, 1), (0, 2), (0, 2), (1, 2), (3, 4), *[(ord(c), 8) for c in "ink"], (9, 64))
    fields.put((0, 1), (2, 2), (3, 4), (0, 1), (0, 2), (3, 2), (2, 3), (0, 2), (1, 2), (1, 2))
    fields.put((0, 1), (2, 2), (2, 4), (0, 1), (1, 2), (0, 2), (0, 2))
    stated = header(fields.codestream())
    assert stated is not None and (stated.height, stated.width) == (500, 300)
    with pytest.raises(ImageError, match="CMYK is not accepted"):
        decode(fields.codestream())
    with pytest.raises(ImageError, match="150,000 pixels, over the limit of 149,999"):
        decode(fields.codestream(), max_pixels=149_999)
    many = Bits().put(*size_field(300, 500), (0, 1), (0, 1), (0, 1), (0, 2), (1, 1), (3, 2), (4095, 12)).codestream()
    with pytest.raises(ImageError, match="4096 bands beyond its colours, up to 4 are accepted"):
        decode(many)


def fails_if_called(*_: Any, **__: Any) -> None:
    raise AssertionError("pixels were decoded")


def test_too_many_pixels_are_refused_before_any_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    tall = np.zeros((12 * HEIGHT, WIDTH, 3), np.uint8)
    limit = HEIGHT * WIDTH
    files = {
        "HEIC": heic(tall),
        "HEIC in tiles": heic(tall, tile_size=64),
        "a picture behind the primary one": heic(RGB, save_all=True, append_images=[Image.fromarray(tall)]),
        "JPEG XL": jxl(tall),
    }
    assert decode(heic(RGB), limit).shape == decode(jxl(RGB), limit).shape == RGB.shape
    monkeypatch.setattr(pillow_heif.HeifImageFile, "load", fails_if_called)
    monkeypatch.setattr(imagecodecs, "jpegxl_decode", fails_if_called)
    for name, data in files.items():
        with pytest.raises(ImageError, match=f"{WIDTH} x {12 * HEIGHT} is 48,384 pixels, over the limit of 4,032"):
            decode(data, max_pixels=limit)
        stated = header(data)
        assert stated is not None and stated.pixels == (limit if name.startswith("a picture") else 12 * limit), name


def with_sizes(data: bytes, width: int, height: int) -> bytes:
    """A HEIF whose properties state another size than its pictures have."""
    return re.sub(rb"(ispe\0{4}).{8}", lambda size: size[1] + struct.pack(">II", width, height), data, flags=re.S)


def test_a_heic_whose_stated_size_is_a_lie_is_refused() -> None:
    for width, height in ((8, 8), (70, 50), (2000, 2000)):
        with pytest.raises(ImageError, match=r"^damaged[^\n]*(exceeds the maximum|does not have the size)"):
            decode(with_sizes(heic(RGB), width, height))
    with pytest.raises(ImageError, match="900,000,000 pixels, over the limit"):
        decode(with_sizes(heic(RGB), 30_000, 30_000))
    with pytest.raises(ImageError, match="over the limit"):
        decode(with_sizes(heic(RGB), 2**32 - 1, 2**32 - 1))


def test_a_heic_of_more_tiles_than_fit_into_it_is_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic(np.zeros((300, 500, 3), np.uint8), tile_size=128)
    assert decode(data).shape == (300, 500, 3)
    size = struct.pack(">HH", 500, 300)
    assert data.count(b"\2\3" + size) == 1  # less than the 3 rows and 4 columns
    small = data.replace(b"\2\3" + size, b"\2\3" + struct.pack(">HH", 130, 130)).replace(
        struct.pack(">II", 500, 300), struct.pack(">II", 130, 130)
    )
    monkeypatch.setattr(pillow_heif.HeifImageFile, "load", fails_if_called)
    with pytest.raises(ImageError, match="4 x 3 tiles, more than fit"):
        decode(small)


@pytest.mark.parametrize("write", [heic, jxl])
def test_a_file_that_is_cut_off_is_refused(write: Callable[[np.ndarray], bytes]) -> None:
    data = write(RGB)
    for length in (*range(4, 60, 7), len(data) // 2, len(data) - 5):
        with pytest.raises(ImageError, match=r"^(damaged|not an image)[^\n]+$"):
            decode(data[:length])


def test_a_missing_decoder_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    photos = {"pip install pillow-heif": heic(RGB), r"pip install 'deeplab-pipelines\[jxl\]'": jxl(RGB)}
    for module in ("pillow_heif", "imagecodecs"):
        monkeypatch.setitem(sys.modules, module, None)
    for reason, data in photos.items():
        with pytest.raises(ImageError, match=reason):
            decode(data)
