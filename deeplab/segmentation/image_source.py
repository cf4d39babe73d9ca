"""Where the image of a mask comes from: a file, encoded bytes, an array or a Pillow image."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from deeplab.errors import ImageError, described
from deeplab.images.bit_depth import rgb
from deeplab.images.decoding import MAX_PIXELS, Header, decode, header
from deeplab.images.preview import picture

ImageLike = str | os.PathLike[str] | bytes | bytearray | memoryview | np.ndarray | Image.Image
ACCEPTED = "a path, the bytes of an image file, an H x W x 3 uint8 array or a Pillow image"


class Unusable(Exception):
    """An image that cannot be used. `stage`: read or decode; `cause` is the error behind it."""

    def __init__(self, stage: str, cause: Exception) -> None:
        reason = getattr(cause, "strerror", None) or (str(cause) if isinstance(cause, ImageError) else described(cause, 200))
        self.stage, self.reason, self.cause = stage, " ".join(reason.split()), cause
        super().__init__(f"{stage}: {self.reason}")

    def alone(self, name: str) -> Exception:
        """The exception of an image that is the only one: an OSError if it cannot be read, else an ImageError that names it."""
        return self.cause if self.stage == "read" else ImageError(f"{name}: {self.reason}")


@dataclass(frozen=True)
class Opened:
    """An image before it is decoded: its encoded bytes and header, or its pixels."""

    encoded: bytes | None
    header: Header | None
    pixels: np.ndarray | None

    @property
    def pixel_count(self) -> int:
        if self.pixels is not None:
            return int(self.pixels.shape[0] * self.pixels.shape[1])
        return self.header.pixels if self.header is not None else 0


class ImageSource:
    """One image, which can be read more than once. TypeError if it is of no accepted kind."""

    def __init__(self, image: ImageLike) -> None:
        if isinstance(image, bytearray | memoryview):
            image = bytes(image)
        if not isinstance(image, str | os.PathLike | bytes | np.ndarray | Image.Image):
            raise TypeError(f"{type(image).__name__}: {ACCEPTED} is accepted")
        # Images are taken ahead: the loop that yields them may fill its array again meanwhile.
        self.image = image.copy() if isinstance(image, np.ndarray) else image

    @property
    def name(self) -> str:
        """The path, or the kind of the object."""
        if isinstance(self.image, str | os.PathLike):
            return os.fspath(self.image)
        if isinstance(self.image, Image.Image):
            return str(getattr(self.image, "filename", "")) or "a Pillow image"
        return f"{len(self.image):,} bytes" if isinstance(self.image, bytes) else "an array"

    def open(self) -> Opened:
        """Its bytes or pixels. Raises Unusable."""
        try:
            if isinstance(self.image, np.ndarray):
                return Opened(None, None, _checked(self.image))
            if isinstance(self.image, Image.Image):
                return Opened(None, None, _checked(np.array(rgb(ImageOps.exif_transpose(self.image)))))
        except MemoryError:
            raise
        except Exception as error:  # Pillow decodes only now, and its decoders raise almost anything
            raise Unusable("decode", error) from error
        if not self.name:
            raise Unusable("read", FileNotFoundError(errno.ENOENT, f"an empty path; {ACCEPTED} is accepted", ""))
        try:
            encoded = self.image if isinstance(self.image, bytes) else Path(self.image).read_bytes()
        except (OSError, ValueError) as error:
            raise Unusable("read", error) from error
        return Opened(encoded, header(encoded), None)

    def picture(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The photo (h x w x 3) and its labels (h x w), both reduced if it is too large to decode whole. OSError, ImageError."""
        try:
            opened = self.open()
            if opened.encoded is not None:
                return picture(opened.encoded, labels)
        except Unusable as error:
            raise error.alone(self.name) from None
        assert opened.pixels is not None
        if opened.pixels.shape[:2] != labels.shape:
            raise ImageError(f"{self.name}: its shape is {opened.pixels.shape} now, its mask's {labels.shape}")
        return opened.pixels, labels


def decoded(opened: Opened, max_pixels: int) -> np.ndarray | None:
    """The pixels, H x W x 3 uint8; None for a file with more than MAX_PIXELS, which is read by rows. Raises Unusable."""
    try:
        if opened.pixel_count > max_pixels:
            raise ImageError(f"{opened.pixel_count:,} pixels, over the limit of {max_pixels:,} (max_pixels raises it)")
        if opened.encoded is None or opened.pixel_count > MAX_PIXELS:
            return opened.pixels
        return decode(opened.encoded, max_pixels)
    except MemoryError:
        raise
    except Exception as error:  # of any decoder
        raise Unusable("decode", error) from error


def _checked(array: np.ndarray) -> np.ndarray:
    if array.ndim == 4:
        raise ImageError(f"an array of shape {array.shape}: H x W x 3 uint8 RGB is accepted; for several images, list(array)")
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise ImageError(f"an array of shape {array.shape}, {array.dtype}: H x W x 3 uint8 RGB is accepted")
    return array
