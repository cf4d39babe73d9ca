"""Every pair of a data set decoded once: what is broken, what the classes' shares are, what sizes there are."""

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
    """`pixels`: labelled pixels per class id, then the ignored ones; `images`: in how many pairs each of them occurs.

    `broken`: stem -> what is wrong with the pair; it counts nowhere else. `doubtful`: stem -> what may be wrong with it.
    `sizes`: (height, width) -> pairs.
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
        """DatasetError, with names, for broken pairs (unless they are to be skipped) and for labels of fewer than two classes."""
        if self.broken and not skip_broken:
            first = "; ".join(list(self.broken.values())[:3])
            raise DatasetError(
                f"{len(self.broken)} of {self.pairs} pairs of {self.split} are broken: {first}"
                f"{'; ...' if len(self.broken) > 3 else ''}. `deeplab dataset check` lists them, --skip-broken leaves them out"
            )
        found = [name for name, count in zip(self.classes, self.pixels, strict=False) if count]
        if len(found) < 2:
            raise DatasetError(
                f"the labels of {self.split} hold {'no class' if not found else f'one class only, {found[0]}'}: "
                "at least two of " + ", ".join(self.classes) + " are needed"
            )


def inspect(data: Labelled, threads: int = 0, report: Callable[[int, int], None] = lambda done, total: None) -> Inspection:
    """Decode all pairs of `data` (on `threads` threads, 0: one per CPU and at least four for a store) and count."""
    classes = len(data.classes)
    result = Inspection(data.split, data.classes, len(data), np.zeros(classes + 1, np.int64), np.zeros(classes + 1, np.int64))

    def examine(index: int) -> tuple[tuple[int, int], np.ndarray, str] | str:
        try:
            encoded = data.encoded(index)
            _, labels = data.decode(index, *encoded)
        except DatasetError as error:
            return str(error)
        counts = np.bincount(labels.ravel(), minlength=256)
        return labels.shape, np.append(counts[:classes], counts[IGNORE]), _doubt(encoded[0], labels.shape)

    with ThreadPoolExecutor(threads or max(4 if data.remote else 1, os.cpu_count() or 1)) as pool:
        for index, found in enumerate(pool.map(examine, range(len(data)))):
            if isinstance(found, str):
                result.broken[data.stems[index]] = found
            else:
                size, counts, doubt = found
                if doubt:
                    result.doubtful[data.stems[index]] = f"{data.stems[index]}: {doubt}"
                result.sizes[size] = result.sizes.get(size, 0) + 1
                result.pixels += counts
                result.images += counts > 0
            report(index + 1, len(data))
    return result


def _doubt(image: bytes, size: tuple[int, ...]) -> str:
    """Whether labels of that size fit an image both as it is stored and as its EXIF orientation turns it; empty if not."""
    stated = header(image)
    turn = stated.orientation if stated is not None else 1
    if not 2 <= turn <= 8 or (turn >= 5 and size[0] != size[1]):
        return ""
    return (
        f"the image is turned by its EXIF orientation {turn}, and labels of its size fit with and without that: "
        "look whether they lie right (--sheet), and turn them if they were drawn on the stored pixels"
    )
