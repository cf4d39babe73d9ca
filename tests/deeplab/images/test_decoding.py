from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deeplab.errors import ImageError
from deeplab.images.decoding import decode, decode_labels, decode_picture
from tests.examples import examples


def reason(data: bytes, **options: int) -> str:
    """The message with which `data` is refused; fails when it is accepted, or with more than one line."""
    with pytest.raises(ImageError) as caught:
        decode(data, **options)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


# Where we differ from the manifest, which says what Pillow does by itself.
ACCEPTED_HERE = {"exif/heic__samplefilehub.heif": "640x426"}
REFUSED_HERE = {"pillow/10ct_32bit_128.tiff": "which value is white"}


@pytest.mark.filterwarnings("ignore")
def test_every_odd_file_is_accepted_or_refused_as_the_manifest_says(shared):
    folder = shared / "data" / "odd"
    header, *rows = [line.split("\t") for line in (folder / "manifest.tsv").read_text().splitlines()]
    assert len(rows) == 126
    for values in rows:
        row = dict(zip(header, values, strict=True))
        data = (folder / row["file"]).read_bytes()
        if row["file"] in ACCEPTED_HERE:
            row |= {"expected": "ok", "size": ACCEPTED_HERE[row["file"]]}
        if row["expected"] == "error" or row["file"] in REFUSED_HERE:
            assert REFUSED_HERE.get(row["file"], "") in reason(data), row["file"]
            continue
        width, height = (int(side) for side in row["size"].split("x"))
        if row["orientation"] in "5678" and row["format"] != "TIFF":  # Pillow tells a TIFF's size as it is to be seen
            width, height = height, width
        image = decode(data)
        assert (image.shape, image.dtype) == ((height, width, 3), np.uint8), row["file"]
        picture = decode_picture(data)
        assert picture.mode == "RGB" and np.array_equal(picture, image), row["file"]


def test_no_odd_file_takes_much_memory(shared):
    """59 megapixels must fit: 177 MB of RGB, and one copy of it on the way. A bomb that is unpacked takes gigabytes."""
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from deeplab.images.decoding import decode; from deeplab.errors import ImageError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sorted(Path(sys.argv[1]).glob('*/*')):\n"
        "    try: decode(path.read_bytes())\n"
        "    except ImageError: pass\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, shared / "data" / "odd"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 600


def test_the_shared_photo_looks_the_same_in_all_orientations(shared):
    upright = decode((shared / "data/odd/pillow/hopper.jpg").read_bytes()).astype(float)
    for orientation in range(2, 9):
        turned = decode((shared / f"data/odd/pillow/hopper_orientation_{orientation}.jpg").read_bytes())
        assert np.abs(turned - upright).mean() < 5, orientation


# How a camera stores the upright picture for each value of EXIF tag 274 (the tag says what the stored row 0 and column 0 are).
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_undone(orientation, photo, encoded):
    upright = photo(19, 31)
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode(encoded(stored, kind, exif=exif)), upright)


def test_an_invalid_orientation_is_ignored(photo, encoded):
    exif = Image.Exif()
    exif[274] = 9
    picture = photo(9, 14)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(picture), "PNG", exif=exif)), picture)


def test_grey_of_16_bits_keeps_its_upper_byte(encoded, rng):
    values = rng.integers(0, 65536, (12, 17), dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        image = decode(encoded(Image.fromarray(values), kind))
        np.testing.assert_array_equal(image, np.repeat((values // 256).astype(np.uint8)[..., None], 3, 2))


@pytest.mark.parametrize("white", [65535, 4095, 1000])
def test_a_pgm_is_scaled_by_the_range_that_it_states_however_dark_it_is(white, rng):
    values = rng.integers(0, 200, (12, 17)).astype(np.uint16)
    pgm = b"P5\n17 12\n%d\n" % white + values.astype(">u2").tobytes()
    np.testing.assert_allclose(decode(pgm), np.repeat((values * (255.99 / white))[..., None], 3, 2), atol=1)


def test_floats_are_refused_since_they_have_no_white(encoded):
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    for data in (encoded(Image.fromarray(values), "TIFF"), b"Pf\n16 16\n-1.0\n" + values.tobytes()):
        assert "which value is white; write bytes" in reason(data)


def test_cmyk_becomes_rgb(encoded):
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[:4, :, 1:3] = 255  # magenta and yellow: red
    ink[4:, :, 3] = 255  # black
    image = decode(encoded(Image.fromarray(ink, "CMYK"), "TIFF"))
    np.testing.assert_array_equal(image[0, 0], (255, 0, 0))
    np.testing.assert_array_equal(image[7, 7], (0, 0, 0))


def test_transparency_is_laid_on_white(encoded):
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, [0, 128, 255]
    image = decode(encoded(Image.fromarray(rgba), "PNG"))
    expected = np.array([[255, 255, 255], [227, 127, 127], [200, 0, 0]])  # c * a + 255 * (1 - a)
    assert np.abs(image[0].astype(int) - expected).max() <= 1

    grey = np.dstack([np.full((2, 3), 10, np.uint8), np.tile(np.array([0, 128, 255], np.uint8), (2, 1))])
    image = decode(encoded(Image.fromarray(grey, "LA"), "PNG"))
    assert np.abs(image[0, :, 0].astype(int) - [255, 132, 10]).max() <= 1


def test_a_band_that_a_tiff_calls_alpha_is_not_multiplied_in(encoded, rng):
    """GDAL calls any fourth band of bytes alpha, near infrared too. `test_tiff.py` has those that colours are multiplied by."""
    rgba = rng.integers(0, 256, (6, 5, 4), np.uint8)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(rgba), "TIFF")), rgba[..., :3])
    grey = np.ascontiguousarray(rgba[..., :2])
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(grey), "TIFF")), np.repeat(grey[..., :1], 3, 2))
    palette = Image.fromarray(rgba[..., 0]).convert("P")
    np.testing.assert_array_equal(decode(encoded(palette.convert("PA"), "TIFF")), np.asarray(palette.convert("RGB")))


def test_a_palette_with_a_transparent_entry(encoded):
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    np.testing.assert_array_equal(decode(encoded(picture, "PNG", transparency=1))[0], [[255, 0, 0], [255, 255, 255], [0, 0, 255]])
    np.testing.assert_array_equal(decode(encoded(picture, "PNG"))[0], [[255, 0, 0], [0, 255, 0], [0, 0, 255]])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_taken(kind, encoded):
    frames = [Image.new("RGB", (10, 6), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    image = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, lossless=True))
    assert image.shape == (6, 10, 3)
    np.testing.assert_array_equal(image[3, 5], (250, 0, 0))


def test_the_pixel_limit_is_the_last_size_accepted(encoded):
    data = encoded(Image.new("L", (40, 25)), "PNG")
    assert decode(data, max_pixels=1000).shape == (25, 40, 3)
    assert "1,000" in reason(data, max_pixels=999)
    assert "999" in reason(data, max_pixels=999)


def png_that_claims(width: int, height: int) -> bytes:
    """A grey PNG whose header announces that size, over the data of a few rows."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = b"IDAT" + zlib.compress(bytes(10_000))
    chunks = [struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in (header, rows, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("side", [7_800, 13_000, 60_000])
def test_a_file_that_announces_too_many_pixels_is_refused_with_the_limit(side):
    assert "60,000,000" in reason(png_that_claims(side, side))


def test_empty_bytes_and_other_files_are_refused():
    assert "empty" in reason(b"")
    for data in (b"\xff", b"hello", b"<html></html>", b"PK\x03\x04" + bytes(40), bytes(4096), b"\xff\xd8\xff\xe0" + bytes(100)):
        reason(data)


def test_postscript_is_refused_whatever_pillow_could_do():
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(eps)).format == "EPS"
    assert "accepted format" in reason(eps)


def pixels_or_refusal(data: bytes) -> None:
    """Any other exception than ImageError comes through and fails the test."""
    try:
        image = decode(data, max_pixels=1_000_000)
    except ImageError as error:
        lines = str(error).splitlines()
        assert len(lines) == 1
    else:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.size


def picture_bytes(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


WHOLE = {kind: picture_bytes(kind) for kind in ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000", "PPM")}


@settings(max_examples=examples(60))
@given(share=st.floats(0, 0.95), kind=st.sampled_from(["JPEG", "PNG", "BMP", "PPM", "WEBP"]))
def test_a_truncated_file_is_refused_with_its_reason(share, kind):
    data = WHOLE[kind]
    reason(data[: int(len(data) * share)])


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=examples(150))
@given(data=st.data(), kind=st.sampled_from(sorted(WHOLE)))
def test_changed_bytes_give_pixels_or_a_refusal_and_nothing_else(data, kind):
    damaged = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, min(len(damaged) - 1, 700)))] = data.draw(st.integers(0, 255))
    pixels_or_refusal(bytes(damaged))


MAGIC = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"GIF89a", b"BM", b"P6 ", b"RIFF"]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=examples(100))
@given(head=st.sampled_from(MAGIC), tail=st.binary(max_size=200))
def test_random_bytes_end_as_pixels_or_a_refusal(head, tail):
    pixels_or_refusal(head + tail)


def test_labels_are_read_as_class_ids(encoded):
    ids = np.array([[0, 1, 255], [2, 20, 7]], np.uint8)
    palette = Image.fromarray(ids)
    palette.putpalette(list(range(256)) * 3)
    np.testing.assert_array_equal(decode_labels(encoded(palette, "PNG")), ids)
    np.testing.assert_array_equal(decode_labels(encoded(Image.fromarray(ids), "PNG")), ids)


def png_of(values: np.ndarray, bits: int, palette: bool = False) -> bytes:
    """H x W ids as a grey or palette PNG of that depth, written bit by bit."""
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 3 if palette else 0, 0, 0, 0)
    lines = b""
    for row in values:
        each = np.unpackbits(row.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 16 - bits :]
        lines += b"\0" + np.packbits(each.ravel()).tobytes()
    colours = [(b"PLTE", bytes(range(3)) * 2**bits)] if palette else []
    chunks = [(b"IHDR", header), *colours, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


DEPTHS = [(1, False), (2, False), (4, False), (8, False), (16, False), (1, True), (2, True), (4, True), (8, True)]


@pytest.mark.parametrize(("bits", "palette"), DEPTHS)
def test_labels_of_every_depth_keep_their_ids(bits, palette, rng):
    ids = rng.integers(0, min(2**bits, 256), (7, 13))
    ids[0, :2] = 0, min(2**bits, 256) - 1
    labels = decode_labels(png_of(ids, bits, palette))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, ids)


def test_a_label_above_255_is_refused_with_its_value():
    with pytest.raises(ImageError, match="labels hold the value 300: up to 255"):
        decode_labels(png_of(np.array([[0, 300]]), 16))


def test_labels_in_colour_or_another_format_are_refused(encoded):
    for data in (
        encoded(Image.new("RGB", (3, 3)), "PNG"),
        encoded(Image.new("LA", (3, 3)), "PNG"),
        encoded(Image.new("L", (3, 3)), "JPEG"),
        encoded(Image.new("L", (30, 30)), "PNG")[:50],
        b"",
    ):
        with pytest.raises(ImageError, match="labels"):
            decode_labels(data)


def test_a_label_file_that_is_a_bomb_is_refused():
    with pytest.raises(ImageError, match="labels"):
        decode_labels(png_that_claims(13_000, 13_000))
