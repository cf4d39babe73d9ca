"""Labelled images: one split of a data set in any layout, as pixels and class ids."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from deeplab.classes import IGNORE
from deeplab.data import layouts
from deeplab.data.layouts import DatasetError
from deeplab.errors import ImageError
from deeplab.files import Files, as_files
from deeplab.images.decoding import decode_labels, decode_picture, header


class LabelledFolder:
    """One split of a data set; `dataset[i]` is (RGB H x W x 3 uint8, labels H x W uint8).

    Labels are class ids 0..C-1 or 255 (ignored). `layout`: a name of deeplab.data.layouts, or "auto" to detect it; "plain"
    is images/, labels/, classes.txt and SPLIT.txt. Raises DatasetError if the folder does not have the layout.
    """

    def __init__(self, root: str | Path | Files, split: str, layout: str = "auto") -> None:
        self.files, self.split = as_files(root), split
        self.remote = self.files.remote
        listing = layouts.read(self.files, split, layout)
        self.classes = listing.classes
        repeated = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if repeated:
            raise DatasetError(f"{self.files}/classes.txt: names {repeated[0]} twice; every class has its own name")
        if not 2 <= len(self.classes) <= IGNORE:
            raise DatasetError(f"{self.files}/classes.txt: {len(self.classes)} classes; 2 to {IGNORE} are accepted")
        if not listing.pairs:
            raise DatasetError(f"{self.files}: split {split} has no images; is it the name of a list or folder there?")
        self.stems = [stem for stem, _, _ in listing.pairs]
        self.images = [image for _, image, _ in listing.pairs]
        self.labels = [labels for _, _, labels in listing.pairs]
        # Class id of each label value. Values that are not accepted are 255 among the ids, and not in `accepts`.
        values = listing.values or {value: value for value in [*range(len(self.classes)), IGNORE]}
        self.ids, self.accepts = np.full(256, IGNORE, np.uint8), np.zeros(256, bool)
        self.ids[list(values)] = list(values.values())
        self.accepts[list(values)] = True
        self.renamed = listing.values is not None
        own = [value for value in values if value != IGNORE]
        self.accepted = f"{min(own)}..{max(own)}" + (f" and {IGNORE}" + " (ignored)" * (not listing.values)) * (IGNORE in values)

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.decode(index, *self.encoded(index))

    def encoded(self, index: int) -> tuple[bytes, bytes]:
        """The bytes of an image's file and of its label file. Raises DatasetError, which names the file at fault."""
        return self.read(self.images[index]), self.read(self.labels[index])

    def read(self, name: str) -> bytes:
        """The bytes of an image or label file. Raises DatasetError, which names it."""
        try:
            return self.files.read(name)
        except OSError as error:
            raise DatasetError(f"{self.files}/{name}: {error.strerror or error}") from error

    def decode(self, index: int, image_bytes: bytes, label_bytes: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Image and labels of pair `index` from the bytes of its files. Raises DatasetError, which names the file at fault."""
        picture, ids = self.decode_picture(index, image_bytes, label_bytes)
        return np.array(picture), ids

    def decode_picture(self, index: int, image_bytes: bytes, label_bytes: bytes) -> tuple[Image.Image, np.ndarray]:
        """As `decode`, the image as Pillow's picture of mode RGB."""
        path = f"{self.files}/{self.labels[index]}"
        try:
            picture = decode_picture(image_bytes)
        except ImageError as error:
            raise DatasetError(f"{self.files}/{self.images[index]}: {error}") from error
        try:
            values = decode_labels(label_bytes)
        except ImageError as error:
            raise DatasetError(f"{path}: {error}") from error
        size = picture.height, picture.width
        if values.shape != size:
            stored = header(image_bytes)
            if stored is not None and stored.orientation >= 5 and values.shape == size[::-1]:
                raise DatasetError(
                    f"{path}: labels are {values.shape}, as the image is stored; with its EXIF orientation {stored.orientation} "
                    f"it is {size} (rows, columns): turn the labels, too, or write the image without that tag"
                )
            raise DatasetError(f"{path}: labels are {values.shape}, the image is {size} (rows, columns)")
        wrong = ~self.accepts[values] if self.renamed else (values >= len(self.classes)) & (values != IGNORE)
        if wrong.any():
            raise DatasetError(f"{path}: value {values[wrong][0]}; {self.accepted} are accepted")
        return picture, self.ids[values] if self.renamed else values

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self[index] for index in range(len(self)))

    def without(self, stems: Sequence[str]) -> LabelledFolder:
        """The same split without some pairs. Raises DatasetError if none is left."""
        excluded = set(stems)
        remaining = [index for index, stem in enumerate(self.stems) if stem not in excluded]
        if not remaining:
            raise DatasetError(f"{self.files}: every pair of {self.split} is broken")
        smaller = copy.copy(self)
        for name in ("stems", "images", "labels"):
            setattr(smaller, name, [getattr(self, name)[index] for index in remaining])
        return smaller


class Labelled(Protocol):
    """One split of a data set: item i is (RGB H x W x 3 uint8, labels H x W uint8); `remote` as in deeplab.files.

    `encoded` returns the bytes of item i, which `decode` turns into the item, and `decode_picture` into the item with Pillow's
    picture of mode RGB for pixels; all raise DatasetError.
    """

    classes: list[str]
    stems: list[str]
    split: str
    remote: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...

    def encoded(self, index: int) -> tuple[bytes, bytes]: ...

    def decode(self, index: int, image_bytes: bytes, label_bytes: bytes) -> tuple[np.ndarray, np.ndarray]: ...

    def decode_picture(self, index: int, image_bytes: bytes, label_bytes: bytes) -> tuple[Image.Image, np.ndarray]: ...
