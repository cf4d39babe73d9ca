"""Labelled image folders: images/STEM.*, labels/STEM.png, classes.txt, and one list of stems per split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deeplab.errors import UserError
from deeplab.images import EXTENSIONS, ImageError, decode, decode_labels
from deeplab.losses import IGNORE


class DatasetError(UserError):
    """The data set cannot be used; the message names the file and what is accepted."""


class LabelledFolder:
    """One split of a data set folder; `dataset[i]` is (RGB H x W x 3 uint8, labels H x W uint8).

    `classes.txt`: line k, from 0, names class k. `SPLIT.txt`: one stem a line. Labels are 8-bit PNG whose values are
    class ids or 255 (ignored). Raises DatasetError where the folder is not of that shape.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root, self.split = Path(root), split
        if not self.root.is_dir():
            raise DatasetError(f"{self.root}: no such folder; a data set has images/, labels/, classes.txt and SPLIT.txt")
        self.classes = self._lines("classes.txt")
        repeated = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if repeated:
            raise DatasetError(f"{self.root / 'classes.txt'}: names {repeated[0]} twice; every class has its own name")
        if not 2 <= len(self.classes) <= IGNORE:
            raise DatasetError(f"{self.root / 'classes.txt'}: {len(self.classes)} classes; 2 to {IGNORE} are accepted")
        self.stems = self._lines(f"{split}.txt")
        if not self.stems:
            raise DatasetError(f"{self.root / f'{split}.txt'}: lists no images")
        images = {path.stem: path for path in sorted((self.root / "images").glob("*")) if path.suffix.lower() in EXTENSIONS}
        missing = [stem for stem in self.stems if stem not in images]
        if missing:
            raise DatasetError(
                f"{self.root / 'images'}: no image for {', '.join(missing[:5])} ({len(missing)} of {len(self.stems)})"
            )
        self.images = [images[stem] for stem in self.stems]

    def _lines(self, name: str) -> list[str]:
        path = self.root / name
        try:
            return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise DatasetError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
        except OSError as error:
            splits = sorted(p.stem for p in self.root.glob("*.txt") if p.stem != "classes")
            raise DatasetError(f"{path}: cannot be read ({error.strerror}); splits here: {', '.join(splits) or 'none'}") from error

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        path = self.root / "labels" / f"{self.stems[index]}.png"
        try:
            image = decode(self.images[index].read_bytes())
        except (OSError, ImageError) as error:
            raise DatasetError(f"{self.images[index]}: {error}") from error
        try:
            labels = decode_labels(path.read_bytes())
        except (OSError, ImageError) as error:
            raise DatasetError(f"{path}: {error}") from error
        if labels.shape != image.shape[:2]:
            raise DatasetError(f"{path}: labels are {labels.shape}, the image is {image.shape[:2]} (rows, columns)")
        wrong = np.setdiff1d(np.unique(labels), [*range(len(self.classes)), IGNORE])
        if wrong.size:
            raise DatasetError(f"{path}: value {wrong[0]}; 0..{len(self.classes) - 1} and {IGNORE} (ignored) are accepted")
        return image, labels

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self[index] for index in range(len(self)))
