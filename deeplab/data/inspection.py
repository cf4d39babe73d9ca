"""Decodes every pair of a data set once to find broken pairs, the shares of the classes, and the sizes of images."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from deeplab.classes import IGNORE
from deeplab.data.datasets import Labelled
from deeplab.data.layouts import DatasetError
from deeplab.images.decoding import header


@dataclass
class Inspection:
    """`pixels`: labelled pixels per class id, then ignored ones; `images`: the number of pairs in which each occurs.

    `broken`: stem -> what is wrong with the pair, which is not counted elsewhere. `doubtful`: stem -> what may be wrong
    with the pair. `sizes`: (height, width) -> number of pairs.
    """

    split: str
    classes: list[str]
    pairs: int
    pixels: np.ndarray
    images: np.ndarray
    broken: dict[str, str] = field(default_factory=dict)
    doubtful: dict[str, str] = field(default_factory=dict)
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)

    def shares(self) -> dict[str, float]:
        """Share of the labelled pixels by class name."""
        total = max(1, int(self.pixels[:-1].sum()))
        return {name: float(count / total) for name, count in zip(self.classes, self.pixels, strict=False)}

    def require_usable(self, skip_broken: bool) -> None:
        """Raises DatasetError for broken pairs (unless they are skipped) and for labels of fewer than two classes."""
        if self.broken and not skip_broken:
            first = "; ".join(list(self.broken.values())[:3])
            raise DatasetError(
                f"{len(self.broken)} of {self.pairs} pairs of {self.split} are broken: {first}"
                f"{'; ...' if len(self.broken) > 3 else ''}. `deeplab dataset check` lists them, --skip-broken leaves them out"
            )
        present = [name for name, count in zip(self.classes, self.pixels, strict=False) if count]
        if len(present) < 2:
            raise DatasetError(
                f"the labels of {self.split} hold {'no class' if not present else f'one class only, {present[0]}'}: "
                "at least two of " + ", ".join(self.classes) + " are needed"
            )


def inspect(data: Labelled, threads: int = 0, report: Callable[[int, int], None] = lambda done, total: None) -> Inspection:
    """Decode and count all pairs of `data`. `threads`: 0 is one per CPU, at least four if files are remote."""
    classes = len(data.classes)
    inspection = Inspection(data.split, data.classes, len(data), np.zeros(classes + 1, np.int64), np.zeros(classes + 1, np.int64))

    def examine(index: int) -> tuple[tuple[int, int], np.ndarray, str] | str:
        try:
            encoded = data.encoded(index)
            _, labels = data.decode(index, *encoded)
        except DatasetError as error:
            return str(error)
        counts = np.bincount(labels.ravel(), minlength=256)
        return labels.shape, np.append(counts[:classes], counts[IGNORE]), _doubt(encoded[0], labels.shape)

    with ThreadPoolExecutor(threads or max(4 if data.remote else 1, os.cpu_count() or 1)) as pool:
        for index, examined in enumerate(pool.map(examine, range(len(data)))):
            if isinstance(examined, str):
                inspection.broken[data.stems[index]] = examined
            else:
                size, counts, doubt = examined
                if doubt:
                    inspection.doubtful[data.stems[index]] = f"{data.stems[index]}: {doubt}"
                inspection.sizes[size] = inspection.sizes.get(size, 0) + 1
                inspection.pixels += counts
                inspection.images += counts > 0
            report(index + 1, len(data))
    return inspection


def _doubt(image: bytes, size: tuple[int, ...]) -> str:
    """A warning if labels of that size fit an image both with and without its EXIF orientation; else empty."""
    stored = header(image)
    orientation = stored.orientation if stored is not None else 1
    if not 2 <= orientation <= 8 or (orientation >= 5 and size[0] != size[1]):
        return ""
    return (
        f"the image is turned by its EXIF orientation {orientation}, and labels of its size fit with and without it: "
        "check that they lie right (--sheet), and turn them if they were drawn on the stored pixels"
    )
