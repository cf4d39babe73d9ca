"""What comes out: the mask of an image, or the reason why there is none."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from deeplab import masks
from deeplab.classes import ClassTable
from deeplab.segmentation.image_source import ImageSource

SHOWN_SIDE = 1024  # pixels, of the picture that a notebook shows


@dataclass(frozen=True, eq=False, repr=False)
class Mask:
    """The mask of one image: what the results table has in the image's row, decoded."""

    labels: np.ndarray
    """H x W class ids, uint8 (uint16 above 256 classes); H and W are the image's after its EXIF rotation."""
    confidence: float
    """Probability of the winning class, averaged over the score positions, before any CRF: 0..1."""
    class_table: ClassTable
    """Names and colours of all classes of the model, by id."""
    model: str
    """Name and digest of the model, NAME@DIGEST12."""
    scored: str
    """How the network was applied, in one line."""
    refined: str | None
    """The CRF that refined the mask, in one line; None without one."""
    source: ImageSource
    error: None = None
    """None, so that masks and `BrokenImage`s of one list can be told apart."""

    @property
    def name(self) -> str:
        """Where the image came from: its path, or what kind of object it was."""
        return self.source.name

    @cached_property
    def class_pixels(self) -> dict[str, int]:
        """Pixels by class name, in the order of the ids; absent classes are absent."""
        return masks.class_pixels(self.labels, self.class_table)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that are present, in the order of their ids."""
        return tuple(self.class_pixels)

    def region(self, name: str) -> np.ndarray:
        """Where a class is: H x W bool. ValueError for a name that the model does not have."""
        names = self.class_table.names
        if name not in names:
            raise ValueError(f"no class {name!r}; {self.model} knows {', '.join(names)}")
        where: np.ndarray = self.labels == names.index(name)
        return where

    def overlay(self, opacity: float = 0.55) -> Image.Image:
        """The photo with every class but 0 (background) tinted in its colour and outlined; smaller if the photo is huge.

        The photo is read again from where it came: OSError or ImageError if it is gone or has changed its size.
        """
        photo, labels = self.source.picture(self.labels)
        return Image.fromarray(masks.overlay(photo, labels, self.class_table, opacity))

    def png(self) -> bytes:
        """The mask as the results table stores it: a PNG whose values are class ids, with the class colours as its palette."""
        return masks.encode_png(self.labels, self.class_table)

    def save(self, path: str | Path) -> None:
        """Write `png` to a file. ValueError for a name that does not end with .png: other formats would change class ids."""
        if Path(path).suffix.lower() != ".png":
            raise ValueError(f"{path}: a mask is saved as .png; for a picture to look at, save the overlay()")
        Path(path).write_bytes(self.png())

    def __repr__(self) -> str:
        height, width = self.labels.shape
        shares = sorted(self.class_pixels.items(), key=lambda entry: -entry[1])
        parts = ", ".join(f"{name} {count / self.labels.size:.1%}" for name, count in shares[:6])
        more = f" and {len(shares) - 6} more" if len(shares) > 6 else ""
        refined = "" if self.refined else ", not refined"
        return f"<Mask of {self.name}: {height} x {width}, {parts}{more}; confidence {self.confidence:.3f}{refined}>"

    def _repr_png_(self) -> bytes:
        """What a notebook shows: the overlay."""
        picture = self.overlay()
        picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(frozen=True)
class BrokenImage:
    """An entry of many that has no mask. `error`: the stage and the reason in one line, as in the results table."""

    name: str
    error: str

    def __repr__(self) -> str:
        return f"<BrokenImage {self.name}: {self.error}>"
