"""Label maps of images that are too large for memory: windows with a margin, band by band from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from deeplab.scoring.predictor import RowSource

# (pixels h x w x 3 uint8, the scores of these pixels C x i x j) -> labels h x w.
Label = Callable[[np.ndarray, np.ndarray], np.ndarray]


def label_rows(
    image: np.ndarray | RowSource, score_rows: Iterable[np.ndarray], stride: int, label: Label, side: int, margin: int
) -> Iterator[np.ndarray]:
    """Bands of the label map from top to bottom, k x W each; a pixel's label comes from the window whose inner part holds it.

    image, score_rows: argument and result of Predictor.score_rows, of which at most one part more than a band needs is
    taken. A window is `side` x `side` pixels and `margin` more on each side, both multiples of the stride; labels in the
    margin are discarded, so a margin as wide as the field of view of `label` leaves no seams.
    """
    height, width = image.shape[:2]
    parts = iter(score_rows)
    window, first = next(parts), 0  # score rows in memory, from row `first` of the whole map on
    for top in range(0, height, side):
        above, below = max(0, top - margin), min(height, top + side + margin)
        rows = _scores_of(above, below, stride)
        while first + window.shape[1] < rows.stop:
            window = np.concatenate([window, next(parts)], axis=1)
        window, first = window[:, rows.start - first :], rows.start
        pixels = image[above:below]
        bands = []
        for left in range(0, width, side):
            before, after = max(0, left - margin), min(width, left + side + margin)
            scores = window[:, : rows.stop - first, _scores_of(before, after, stride)]
            labels = label(pixels[:, before:after], scores)
            bands.append(labels[top - above :, left - before :][:side, :side])
        yield np.concatenate(bands, axis=1)


def _scores_of(start: int, stop: int, stride: int) -> slice:
    """The scores that surround the pixels start..stop - 1; `start` is a multiple of the stride."""
    return slice(start // stride, -(-(stop - 1) // stride) + 1)
