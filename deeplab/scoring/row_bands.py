"""Label maps of images that are too large to be held: windows with a margin, band by band from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

# (pixels h x w x 3 uint8, the scores of these pixels C x i x j) -> labels h x w.
Label = Callable[[np.ndarray, np.ndarray], np.ndarray]


def label_rows(
    image: Any, score_rows: Iterable[np.ndarray], stride: int, label: Label, side: int, margin: int
) -> Iterator[np.ndarray]:
    """Bands of the label map from top to bottom, k x W each; a pixel's label is from the window whose inner part holds it.

    image: as Predictor.score_rows takes it, which makes `score_rows`, too (at most one part more than a band needs is
    taken from it). A window is `side` x `side` pixels and `margin` more on each side, both multiples of the stride;
    what `label` says of the margin is not used, so a margin as wide as its view leaves no seams.
    """
    height, width = image.shape[:2]
    parts = iter(score_rows)
    held, first = next(parts), 0  # score rows, the first of which is row `first` of the whole map
    for top in range(0, height, side):
        above, below = max(0, top - margin), min(height, top + side + margin)
        rows = _scores_of(above, below, stride)
        while first + held.shape[1] < rows.stop:
            held = np.concatenate([held, next(parts)], axis=1)
        held, first = held[:, rows.start - first :], rows.start
        pixels = image[above:below]
        bands = []
        for left in range(0, width, side):
            before, after = max(0, left - margin), min(width, left + side + margin)
            scores = held[:, : rows.stop - first, _scores_of(before, after, stride)]
            found = label(pixels[:, before:after], scores)
            bands.append(found[top - above :, left - before :][:side, :side])
        yield np.concatenate(bands, axis=1)


def _scores_of(start: int, stop: int, stride: int) -> slice:
    """The scores between which the pixels start..stop - 1 lie; `start` is a multiple of the stride."""
    return slice(start // stride, -(-(stop - 1) // stride) + 1)
