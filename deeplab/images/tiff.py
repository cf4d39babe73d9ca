"""How a TIFF stores its samples, by the tags of its first picture, and whether Pillow reads such a TIFF correctly.

Pillow silently decodes many layouts wrongly: planes of 16 bits, compressed signed samples of big-endian
files, 12 bits, blocks that are left out. So Pillow gets only layouts whose pixels were compared with what was written
(tests/deeplab/images/test_tiff.py); GDAL reads all others (`deeplab.images.gdal_raster`).
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass

from deeplab.errors import ImageError
from deeplab.images.bit_depth import FLOATS

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_ENTRIES = 1000  # of a directory; real ones have less than a hundred
MAX_VALUES = 1 << 20  # of one tag: the starts of strips, or the colour map of 16-bit indices
# GDAL's metadata of a band, or of all: how many bits of its samples are in use.
NBITS = re.compile(rb'<Item name="NBITS"[^>]*>\s*(\d{1,2})\s*</Item>')

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
UNSIGNED, SIGNED, FLOATING = 1, 2, 3
KINDS = {UNSIGNED: "unsigned", SIGNED: "signed", FLOATING: "floating-point"}
ASSOCIATED, ALPHA = 1, 2  # values of ExtraSamples: alpha that colours are multiplied by, or not
NOT_COMPRESSED, JPEGS = 1, (6, 7)  # 6 is TIFF's obsolete JPEG
FAX = (2, 3, 4)
# LZW (5), JPEG, Deflate (two numbers), PackBits, LZMA, Zstandard. The libtiff within Pillow's wheels has no WebP.
PILLOW_COMPRESSIONS = (NOT_COMPRESSED, *FAX, 5, *JPEGS, 8, 32946, 32773, 34925, 50000)


class NotTiff(ValueError):
    """The bytes have no readable first directory; the message says what is wrong with it."""


@dataclass(frozen=True)
class TiffLayout:
    """The first picture of a TIFF. `width`, `height`: as stored, before `orientation` (1..8) turns it.

    `guessed`: the file does not say what its samples mean; `photometric` is then libtiff's default.
    `bits` and `kind` are those of every sample (0 where they differ); `white`: the sample value of full intensity, 0
    if there is none (signed, floats, over 16 bits); `extra`: what each sample beyond the colours is; `sparse`: blocks are
    missing, as GDAL leaves out those that hold nothing; `preview`: the picture is a smaller one of another in the file, as in the
    raw files of cameras; `colours`: the colour map, R, G and B one after the other, 16 bits each.
    """

    width: int
    height: int
    big_endian: bool
    big_tiff: bool
    photometric: int
    guessed: bool
    samples: int
    bits: int
    white: int
    kind: int
    extra: tuple[int, ...]
    planes: bool
    compression: int
    bits_reversed: bool
    subsampling: tuple[int, ...]
    sparse: bool
    preview: bool
    orientation: int
    colours: tuple[int, ...]

    @property
    def alpha_applies(self) -> bool:
        """Whether a sample is the alpha that colours are multiplied by.

        Other alpha is not applied: GDAL calls any fourth band of 8 bits alpha, also the near infrared of an aerial photo.
        """
        return ASSOCIATED in self.extra

    def __str__(self) -> str:
        where = " in planes" if self.planes and self.samples > 1 else ""
        return f"{self.samples} x {self.bits}-bit {KINDS.get(self.kind, 'unknown')} samples{where}, photometric {self.photometric}"


def is_tiff(data: bytes) -> bool:
    return data[:4] in MAGIC


def layout(data: bytes) -> TiffLayout:
    """The layout of an encoded TIFF's first picture. Raises NotTiff."""
    tags = _tags(data)

    def one(tag: int, default: int) -> int:
        return tags.get(tag, (default,))[0]

    width, height, samples = one(256, 0), one(257, 0), one(277, 1)
    if not width or not height or not samples:
        raise NotTiff(f"its first picture is {width} x {height} pixels of {samples} samples")
    compression = one(259, NOT_COMPRESSED)
    default = RGB if samples >= 3 else WHITE_IS_ZERO if compression in FAX else BLACK_IS_ZERO
    depths, kinds = tags.get(258, (1,)), tags.get(339, (UNSIGNED,))
    bits = depths[0] if len(set(depths)) == 1 else 0
    kind = kinds[0] if len(set(kinds)) == 1 else 0
    orientation = one(274, 1)
    return TiffLayout(
        width,
        height,
        data[:1] == b"M",
        43 in data[2:4],
        one(262, default),
        262 not in tags,
        samples,
        bits,
        _white(tags, bits) if kind == UNSIGNED else 0,
        kind,
        tags.get(338, ()),
        one(284, 1) == 2,
        compression,
        one(266, 1) == 2,
        tags.get(530, (2, 2)),
        0 in tags.get(STRIPS, ()) or 0 in tags.get(TILES, ()),
        one(254, 0) & 1 == 1 or DNG_VERSION in tags or (43 not in data[2:4] and data[8:11] == CANON_RAW),
        orientation if 1 <= orientation <= 8 else 1,
        tags.get(320, ()),
    )


def _white(tags: dict[int, tuple[int, ...]], bits: int) -> int:
    """2^BitsPerSample - 1, or less if a file of 9 to 16 bits says by GDAL's NBITS or SMaxSampleValue that it uses less."""
    if bits > 16:
        return 0
    full = 2**bits - 1
    stated = [2 ** int(used) - 1 for used in NBITS.findall(bytes(tags.get(GDAL_METADATA, ())))] or tags.get(MAX_SAMPLE, (full,))
    white = max(stated)
    return white if bits > 8 and 0 < white < full else full


def check_samples(stored: TiffLayout) -> None:
    """Raises ImageError for samples that are never accepted, whatever they mean."""
    if stored.preview:
        raise ImageError(f"is not accepted: {PREVIEW}")
    if stored.kind == FLOATING:
        raise ImageError(f"is not accepted: {FLOATS}")
    if not stored.bits or stored.kind not in KINDS:
        raise ImageError("is not accepted: its samples are no integers of one depth")


STRIPS, TILES, MAX_SAMPLE, GDAL_METADATA, DNG_VERSION = 273, 324, 341, 42112, 50706  # of strips and tiles, where they start
CANON_RAW = b"CR\x02"  # in CR2, behind the header
PREVIEW = "its first picture is a smaller copy, as in the raw files of cameras; write JPEG or TIFF with the camera's program"
READ_TAGS = {254, 256, 257, 258, 259, 262, 266, 274, 277, 284, 320, 338, 339, 530} | {
    STRIPS, TILES, MAX_SAMPLE, GDAL_METADATA, DNG_VERSION
}  # fmt: skip
FIELD_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # BYTE, SHORT, LONG, LONG8
OTHER_TYPES = {MAX_SAMPLE: {**FIELD_TYPES, 11: "f", 12: "d"}, GDAL_METADATA: {1: "B", 2: "B"}}  # FLOAT, DOUBLE; ASCII


def _tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """The values of those READ_TAGS that the first directory holds as unsigned integers; GDAL's metadata as bytes."""
    if not is_tiff(data):
        raise NotTiff("it does not start like a TIFF")
    order = "<" if data[:1] == b"I" else ">"
    big = 43 in data[2:4]
    try:
        (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
        if entries > MAX_ENTRIES:
            raise NotTiff(f"its directory claims {entries:,} entries")
        first, step, value = (start + 8, 20, 12) if big else (start + 2, 12, 8)
        tags: dict[int, tuple[int, ...]] = {}
        for at in range(first, first + entries * step, step):
            tag, kind, count = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, at)
            field = OTHER_TYPES.get(tag, FIELD_TYPES).get(kind)
            if tag not in READ_TAGS or field is None or not 0 < count <= MAX_VALUES:
                continue
            form = f"{order}{count}{field}"
            where = at + value
            if struct.calcsize(form) > step - value:
                (where,) = struct.unpack_from(order + ("Q" if big else "I"), data, where)
            values = struct.unpack_from(form, data, where)
            tags[tag] = tuple(int(value) if math.isfinite(value) else 0 for value in values) if field in "fd" else values
        return tags
    except (struct.error, OverflowError) as error:
        raise NotTiff("its directory is damaged or cut off") from error


# (photometric, samples) -> the bits and the ExtraSamples that Pillow reads correctly if the samples of a pixel lie side by side.
EXTRA_SAMPLE = ((0,), (ALPHA,))
PILLOW = {
    (WHITE_IS_ZERO, 1): ((1, 2, 4, 8), ((),)),
    (BLACK_IS_ZERO, 1): ((1, 2, 4, 8, 16), ((),)),
    (BLACK_IS_ZERO, 2): ((8,), EXTRA_SAMPLE),
    (PALETTE, 1): ((1, 2, 4, 8), ((),)),
    (PALETTE, 2): ((8,), EXTRA_SAMPLE),
    (RGB, 3): ((8, 16), ((),)),
    (RGB, 4): ((8, 16), (*EXTRA_SAMPLE, (ASSOCIATED,), ())),
    (CMYK, 4): ((8, 16), ((),)),
    (YCBCR, 3): ((8,), ((),)),
    (LAB, 3): ((8,), ((),)),
}


def pillow_reads(stored: TiffLayout) -> bool:
    """Whether Pillow decodes this layout correctly."""
    if (
        stored.sparse
        or stored.preview
        or stored.guessed
        or (stored.big_endian and stored.big_tiff)
        or stored.compression not in PILLOW_COMPRESSIONS
    ):
        return False
    if stored.white and stored.white < 2**stored.bits - 1:
        return False
    plain = stored.compression == NOT_COMPRESSED
    if stored.kind != UNSIGNED:
        wide = (stored.kind, stored.bits) in ((SIGNED, 16), (SIGNED, 32))
        grey = (stored.photometric, stored.samples, stored.planes) == (BLACK_IS_ZERO, 1, False)
        # libtiff decompresses samples to this machine's byte order, but Pillow assumes the file's.
        return wide and grey and (plain or not stored.big_endian)
    if stored.planes and (stored.photometric, stored.samples) not in ((BLACK_IS_ZERO, 1), (RGB, 3)):
        return False
    if stored.bits != 8 and (stored.planes or stored.compression in JPEGS or (stored.bits > 8 and stored.bits_reversed)):
        return False
    if stored.photometric == YCBCR and plain and stored.subsampling != (1, 1):
        return False
    bits, extra = PILLOW.get((stored.photometric, stored.samples), ((), ()))
    return stored.bits in bits and stored.extra in extra
