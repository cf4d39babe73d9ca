"""Label maps of images that are too large for memory: windows with a margin, band by band from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from deeplab.placement import Placement

# (pixels h x w x 3 uint8, the scores of these pixels C x i x j, where they lie on them) -> labels h x w.
Label = Callable[[np.ndarray, np.ndarray, Placement], np.ndarray]
# Pixels that the CRF sees around each window of a large image. With 64, the labels of a mosaic of photos differ from those of a
# CRF over the whole image in 0.04 % of pixels, as they do when the image is cropped by 8 pixels. (The CRF changes 1.7 %.)
CRF_MARGIN = 64


class RowSource(Protocol):
    """An H x W x 3 uint8 RGB image that is read by slices of rows, such as deeplab.images.row_windows.LargeImage."""

    shape: tuple[int, int, int]

    def __getitem__(self, rows: slice) -> np.ndarray: ...


class WindowScores(Protocol):
    """What scores every pixel of windows of at most `tile` x `tile`."""

    tile: int

    def scores(self, images: Sequence[np.ndarray]) -> list[np.ndarray]: ...

    def placement(self, scores: np.ndarray, height: int, width: int) -> Placement: ...


def label_rows(
    image: np.ndarray | RowSource, score_rows: Iterable[np.ndarray], placement: Placement, label: Label, side: int, margin: int
) -> Iterator[np.ndarray]:
    """Bands of the label map from top to bottom, k x W each; a pixel's label comes from the window whose inner part holds it.

    image, score_rows: argument and result of Predictor.score_rows, of which at most one part more than a band needs is
    taken; `placement`: where all of these scores lie on the image. A window is `side` x `side` pixels and `margin` more on each
    side; labels in the margin are discarded, so a margin as wide as the field of view of `label` leaves no seams.
    """
    height, width = image.shape[:2]
    parts = iter(score_rows)
    window, first = next(parts), 0  # score rows in memory, from row `first` of the whole map on
    for top in range(0, height, side):
        above, below = max(0, top - margin), min(height, top + side + margin)
        rows, row_axis = placement.rows.window(above, below)
        while first + window.shape[1] < rows.stop:
            window = np.concatenate([window, next(parts)], axis=1)
        window, first = window[:, rows.start - first :], rows.start
        pixels = image[above:below]
        bands = []
        for left in range(0, width, side):
            before, after = max(0, left - margin), min(width, left + side + margin)
            columns, column_axis = placement.columns.window(before, after)
            scores = window[:, : rows.stop - first, columns]
            labels = label(pixels[:, before:after], scores, Placement(row_axis, column_axis))
            bands.append(labels[top - above :, left - before :][:side, :side])
        yield np.concatenate(bands, axis=1)


def label_windows(
    image: np.ndarray | RowSource, predictor: WindowScores, label: Label, margin: int, watch: Callable[[np.ndarray], None]
) -> Iterator[np.ndarray]:
    """`label_rows` for scores at every pixel, which take too much memory even for some rows of a wide image.

    Every window is scored and labelled as an image of its own, of at most `tile` pixels a side with its margins; all are about
    equally large. `watch` is called with the scores of each window's inner part.
    """
    height, width = image.shape[:2]
    side = max(1, predictor.tile - 2 * margin)
    for top, bottom in _even(height, side):
        above = max(0, top - margin)
        pixels = image[above : min(height, bottom + margin)]
        bands = []
        for left, right in _even(width, side):
            before = max(0, left - margin)
            inner = np.s_[top - above : bottom - above, left - before : right - before]
            window = np.ascontiguousarray(pixels[:, before : min(width, right + margin)])
            scores = predictor.scores([window])[0]
            watch(scores[:, *inner])
            bands.append(label(window, scores, predictor.placement(scores, *window.shape[:2]))[inner])
        yield np.concatenate(bands, axis=1)


def _even(length: int, most: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 of the fewest parts of at most `most` that make up `length`, about equally long."""
    count = -(-length // most)
    return ((length * k // count, length * (k + 1) // count) for k in range(count))
