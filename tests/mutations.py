"""Valid images, and broken variants of them: flipped bits, cut, spliced, lying headers, lengths and sizes."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
from imagecodecs import jpeg2k_encode, jpegxl_encode
from PIL import Image
from rasterio.io import MemoryFile

from deeplab.images import heif

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What a length, a count or a size should never be: none, one, most of a byte, a word and a double word, and a bit more.
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def seeds() -> dict[str, bytes]:
    """Name (its suffix says the format) -> a valid image: every accepted format in several modes and codings."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 4), np.uint8)
    rgba = Image.fromarray(noise).resize((96, 72), Image.Resampling.BICUBIC)
    rgb = rgba.convert("RGB")
    grey = rgb.convert("L")
    deep = Image.fromarray((np.asarray(grey, np.uint16) << 8) + 17)
    exif = Image.Exif()
    exif[274], exif[271] = 6, "maker"
    made = {
        "baseline.jpg": _save(rgb, "JPEG", quality=85, exif=exif),
        "progressive.jpg": _save(rgb, "JPEG", quality=70, progressive=True, subsampling=2),
        "grey.jpg": _save(grey, "JPEG", restart_marker_blocks=4),
        "cmyk.jpg": _save(rgb.convert("CMYK"), "JPEG"),
        "two.mpo": _save(rgb, "MPO", save_all=True, append_images=[grey.convert("RGB")]),
        "rgb.png": _save(rgb, "PNG", exif=exif),
        "rgba.png": _save(rgba, "PNG"),
        "palette.png": _save(rgb.quantize(64), "PNG", transparency=3),
        "deep.png": _save(deep, "PNG"),
        "bits.png": _save(rgb.convert("1"), "PNG"),
        "animated.png": _save(rgb, "PNG", save_all=True, append_images=[grey.convert("RGB")], duration=50),
        "moving.gif": _save(rgb.quantize(32), "GIF", save_all=True, append_images=[rgb.rotate(9).quantize(16)], duration=50),
        "rgb.bmp": _save(rgb, "BMP"),
        "palette.bmp": _save(rgb.quantize(16), "BMP"),
        "lossy.webp": _save(rgb, "WEBP", quality=60),
        "lossless.webp": _save(rgba, "WEBP", lossless=True, exif=exif),
        "waves.jp2": _save(rgb, "JPEG2000"),
        "tiles.jp2": _save(rgba, "JPEG2000", tile_size=(32, 32), irreversible=True),
        "rgb.avif": _save(rgb, "AVIF", quality=60),
        "rgb.ppm": _save(rgb, "PPM"),
        "grey.pgm": _save(deep, "PPM"),
        "bits.pbm": _save(rgb.convert("1"), "PPM"),
        "signed.tif": _save(Image.fromarray(np.asarray(grey, np.int32) - 99), "TIFF"),
        "deep.jp2": bytes(jpeg2k_encode(np.asarray(rgb, np.uint16) * 257, level=0, codecformat="jp2", reversible=True)),
        "lossy.jxl": jpegxl_encode(np.asarray(rgb), level=80),
        "deep.jxl": jpegxl_encode(np.asarray(rgba, np.uint16) * 257, lossless=True, usecontainer=True),
    }
    heif.register()
    made["photo.heic"] = _save(rgb, "HEIF", quality=60, exif=exif.tobytes())
    made["tiles.heic"] = _save(rgb, "HEIF", quality=60, tile_size=64)
    made["rgba.heif"] = _save(rgba, "HEIF", quality=60, append_images=[grey], save_all=True)
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        made[f"{compression}.tif"] = _save(rgb, "TIFF", compression=compression)
    made["fax.tif"] = _save(rgb.convert("1"), "TIFF", compression="group4")
    made["rgba.tif"] = _save(rgba, "TIFF", exif=exif)
    wide = np.moveaxis(np.asarray(rgba), 2, 0).astype(np.uint16) * 257
    made["planes.tif"] = _bands(wide[:3], interleave="band", compress="lzw", photometric="RGB")
    made["tiles.tif"] = _bands(wide, compress="deflate", predictor=2, tiled=True, blockxsize=32, blockysize=32)
    made["twelve.tif"] = _bands(wide[:1] >> 4, nbits=12, endianness="BIG")
    made["lerc.tif"] = _bands(wide, compress="lerc", bigtiff="YES")
    return made


def _bands(values: np.ndarray, **options: object) -> bytes:
    """A TIFF as GDAL writes it, which Pillow reads wrongly or not at all."""
    shape = {"count": len(values), "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype.name}
    with MemoryFile() as memory:
        with warnings.catch_warnings(action="ignore"), memory.open(driver="GTiff", **shape, **options) as file:
            file.write(values)
        return bytes(memory.read())


def _save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def variants(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """`count` (file name, bytes); the same for the same seed. The name says number, seed image and what was done to it."""
    chance = random.Random(seed)
    valid = list(seeds().items())
    for number in range(count):
        name, data = valid[number % len(valid)]
        done = []
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            change = chance.choice(CHANGES)
            data = change(bytearray(data), chance, chance.choice(valid)[1])
            done.append(change.__name__.lstrip("_"))
        stem, _, suffix = name.rpartition(".")
        yield f"{number:05d}-{stem}-{'-'.join(done)}.{suffix}", bytes(data)


def _somewhere(data: bytearray, chance: random.Random) -> int:
    """A place, in half of the cases in the header."""
    end = max(1, len(data) - 1)
    return chance.randrange(min(end, 200)) if chance.random() < 0.5 else chance.randrange(end)


def _bits(data: bytearray, chance: random.Random, other: bytes) -> bytes:
    for _ in range(chance.choice((1, 2, 8, 40)) if data else 0):
        data[_somewhere(data, chance) % len(data)] ^= 1 << chance.randrange(8)
    return bytes(data)


def _cut(data: bytearray, chance: random.Random, other: bytes) -> bytes:
    return bytes(data[: chance.randrange(len(data) + 1)])


def _splice(data: bytearray, chance: random.Random, other: bytes) -> bytes:
    """The head of one image and the tail of another."""
    return bytes(data[: _somewhere(data, chance)]) + other[chance.randrange(len(other)) :]


def _without(data: bytearray, chance: random.Random, other: bytes) -> bytes:
    at = _somewhere(data, chance)
    del data[at : at + chance.randrange(1, 64)]
    return bytes(data)


def _again(data: bytearray, chance: random.Random, other: bytes) -> bytes:
    at, length = _somewhere(data, chance), chance.randrange(1, 400)
    data[at:at] = data[at : at + length] * chance.choice((1, 3, 50))
    return bytes(data)


def _number(data: bytearray, chance: random.Random, other: bytes) -> bytes:
    """An extreme value, of one, two or four bytes in either order, over whatever lies there."""
    form = chance.choice(("B", "<H", ">H", "<I", ">I"))
    at, width = _somewhere(data, chance), struct.calcsize(form)
    data[at : at + width] = struct.pack(form, chance.choice(EXTREMES) % (1 << 8 * width))
    return bytes(data)


def _zeros(data: bytearray, chance: random.Random, other: bytes) -> bytes:
    at = _somewhere(data, chance)
    length = min(len(data) - at, chance.randrange(1, 200))
    data[at : at + length] = bytes([chance.choice((0, 255))]) * length
    return bytes(data)


def _size(data: bytearray, chance: random.Random, other: bytes) -> bytes:
    """Another width or height where the format keeps it, below the pixel limit and above."""
    side = chance.choice((0, 1, 5, 95, 97, 4000, 7000, 16384, 30000, 65535))
    if data.startswith(PNG_SIGNATURE):
        at = chance.choice((16, 20))
        data[at : at + 4] = struct.pack(">I", side)
        return _checked(bytes(data))
    for mark, offset, form in (
        (b"\xff\xc0", chance.choice((5, 7)), ">H"),
        (b"\xff\xc2", chance.choice((5, 7)), ">H"),
        (b"GIF8", chance.choice((6, 8)), "<H"),
        (b"BM", chance.choice((18, 22)), "<I"),
        (b"VP8 ", chance.choice((14, 16)), "<H"),
        (b"ihdr", chance.choice((4, 8)), ">I"),
        (b"\xff\x51", chance.choice((6, 10, 22, 26)), ">I"),
        (b"ispe", chance.choice((8, 12)), ">I"),
        (b"\x00\x01\x04\x00", 8, "<I"),  # TIFF tag 256 or 257, type long, little end first
        (b"\x01\x01\x04\x00", 8, "<I"),
    ):
        at = data.find(mark)
        if at >= 0 and at + offset + struct.calcsize(form) <= len(data):
            data[at + offset : at + offset + struct.calcsize(form)] = struct.pack(form, side)
            return bytes(data)
    return _number(data, chance, other)


def _length(data: bytearray, chance: random.Random, other: bytes) -> bytes:
    """A chunk, segment or box that lies about its length; checksums of a PNG are put right, so that it is believed."""
    wide = chance.choice(EXTREMES)
    if data.startswith(PNG_SIGNATURE):
        at = data.find(chance.choice((b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"eXIf", b"IEND")))
        if at >= 4:
            data[at - 4 : at] = struct.pack(">I", wide)
        return bytes(data)
    if data.startswith(b"\xff\xd8"):
        marks = [at for at in range(2, len(data) - 4) if data[at] == 0xFF and 0xC0 <= data[at + 1] <= 0xFE]
        at = chance.choice(marks) + 2 if marks else 2
        data[at : at + 2] = struct.pack(">H", wide & 0xFFFF)
        return bytes(data)
    if data.startswith(b"RIFF"):
        at = chance.choice((4, 16))
        data[at : at + 4] = struct.pack("<I", wide)
        return bytes(data)
    return _number(data, chance, other)


def _pixels(data: bytearray, chance: random.Random, other: bytes) -> bytes:
    """Changes inside a PNG's chunks with checksums that are right again, so that they reach the decoder."""
    if not data.startswith(PNG_SIGNATURE) or len(data) < 60:
        return _bits(data, chance, other)
    for _ in range(chance.choice((1, 4, 20))):
        data[chance.randrange(16, len(data) - 12)] = chance.randrange(256)
    return _checked(bytes(data))


def _checked(data: bytes) -> bytes:
    """A PNG with the checksum of every chunk as far as its lengths can be followed."""
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            break
        body = data[at + 4 : at + 8 + length]
        parts.append(data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + length
    return b"".join([*parts, data[at:]])


CHANGES = (_bits, _cut, _splice, _without, _again, _number, _zeros, _size, _length, _pixels)
