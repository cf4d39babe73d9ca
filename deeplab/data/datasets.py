"""Labelled images: one split of a data set, in whatever layout, as pixels and class ids."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from deeplab.classes import IGNORE
from deeplab.data import layouts
from deeplab.data.layouts import DatasetError
from deeplab.errors import ImageError
from deeplab.files import Files, as_files
from deeplab.images.decoding import decode, decode_labels, header


class LabelledFolder:
    """One split of a data set; `dataset[i]` is (RGB H x W x 3 uint8, labels H x W uint8).

    Labels are class ids 0..C-1 or 255 (ignored). `layout`: a name of deeplab.data.layouts, or "auto" to find it; ours is
    images/, labels/, classes.txt and SPLIT.txt. Raises DatasetError where the folder is of no such shape.
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
        # Class id of each label value; -1 for those that are not accepted.
        values = listing.values or {value: value for value in [*range(len(self.classes)), IGNORE]}
        self.ids = np.full(256, -1, np.int16)
        self.ids[list(values)] = list(values.values())
        own = [value for value in values if value != IGNORE]
        self.accepted = f"{min(own)}..{max(own)}" + (f" and {IGNORE}" + " (ignored)" * (not listing.values)) * (IGNORE in values)

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.decode(index, *self.encoded(index))

    def encoded(self, index: int) -> tuple[bytes, bytes]:
        """The bytes of an image's file and of its labels'. DatasetError that names the file at fault."""
        return self.read(self.images[index]), self.read(self.labels[index])

    def read(self, name: str) -> bytes:
        """The bytes of an image or label file. DatasetError that names it."""
        try:
            return self.files.read(name)
        except OSError as error:
            raise DatasetError(f"{self.files}/{name}: {error.strerror or error}") from error

    def decode(self, index: int, image_bytes: bytes, label_bytes: bytes) -> tuple[np.ndarray, np.ndarray]:
        """What pair `index` holds, given the bytes of its files. DatasetError that names the file at fault."""
        path = f"{self.files}/{self.labels[index]}"
        try:
            image = decode(image_bytes)
        except ImageError as error:
            raise DatasetError(f"{self.files}/{self.images[index]}: {error}") from error
        try:
            found = decode_labels(label_bytes)
        except ImageError as error:
            raise DatasetError(f"{path}: {error}") from error
        if found.shape != image.shape[:2]:
            stated = header(image_bytes)
            if stated is not None and stated.orientation >= 5 and found.shape == image.shape[1::-1]:
                raise DatasetError(
                    f"{path}: labels are {found.shape}, as the image is stored; with its EXIF orientation {stated.orientation} "
                    f"it is {image.shape[:2]} (rows, columns): turn the labels, too, or write the image without that tag"
                )
            raise DatasetError(f"{path}: labels are {found.shape}, the image is {image.shape[:2]} (rows, columns)")
        ids = self.ids[found]
        if (ids < 0).any():
            raise DatasetError(f"{path}: value {found[ids < 0][0]}; {self.accepted} are accepted")
        return image, ids.astype(np.uint8)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self[index] for index in range(len(self)))

    def without(self, stems: Sequence[str]) -> LabelledFolder:
        """The same split less some pairs. DatasetError when none is left."""
        out = set(stems)
        left = [index for index, stem in enumerate(self.stems) if stem not in out]
        if not left:
            raise DatasetError(f"{self.files}: every pair of {self.split} is broken")
        smaller = copy.copy(self)
        for name in ("stems", "images", "labels"):
            setattr(smaller, name, [getattr(self, name)[index] for index in left])
        return smaller


class Labelled(Protocol):
    """One split of a data set: item i is (RGB H x W x 3 uint8, labels H x W uint8); `remote` as in deeplab.files.

    `encoded` are the bytes that item i is made of, and `decode` makes it of them; both raise DatasetError.
    """

    classes: list[str]
    stems: list[str]
    split: str
    remote: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...

    def encoded(self, index: int) -> tuple[bytes, bytes]: ...

    def decode(self, index: int, image_bytes: bytes, label_bytes: bytes) -> tuple[np.ndarray, np.ndarray]: ...
