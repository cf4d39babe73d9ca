"""Half mode around any backend: the photo and its scores as means of 2 x 2 pixels, and marginals back at the photo's size.

The mean of pixels 2 i and 2 i + 1 stands at 2 i + 1/2; an odd last row or column counts twice. The native engine does the same.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from deeplab.crf.inputs import Grid
from deeplab.crf.parameters import CRFParameters
from deeplab.placement import Axis, Placement


def halved_image(image: np.ndarray) -> np.ndarray:
    """H x W x 3 uint8 -> ceil(H / 2) x ceil(W / 2) x 3 uint8, rounded."""
    a, b, c, d = (corner.astype(np.uint16) for corner in _corners(image, 0))
    return ((a + b + c + d + 2) >> 2).astype(np.uint8)


def halved_grid(grid: Grid) -> Grid:
    """The same scores for the pixels of the halved image."""
    values = grid.values
    if grid.full_size:
        a, b, c, d = _corners(values, 1)
        values = (a + b + c + d) / np.float32(4)
    axes = zip(values.shape[1:], (grid.placement.rows, grid.placement.columns), strict=True)
    placement = Placement(*(Axis(count, 2 * axis.step, axis.shift + axis.step / 2) for count, axis in axes))
    return replace(grid, values=values, placement=placement)


def halved_parameters(parameters: CRFParameters) -> CRFParameters:
    """Deviations in pixels of the halved image; below 0.001, where a pixel is alone anyway, they stay."""
    pos, bi = ((max(x / 2, 1e-3), max(y / 2, 1e-3)) for x, y in (parameters.pos_xy, parameters.bi_xy))
    return replace(parameters, pos_xy_std=pos, bi_xy_std=bi)


def enlarged(marginals: np.ndarray, height: int, width: int) -> np.ndarray:
    """C x ceil(H / 2) x ceil(W / 2) float32 -> C x H x W, bilinearly."""
    return _doubled(_doubled(marginals, 1)[:, :height], 2)[:, :, :width]


def _corners(array: np.ndarray, axis: int) -> list[np.ndarray]:
    """The four pixels of every 2 x 2 block; rows are at `axis`."""
    padded = np.pad(array, [(0, n % 2 if i in (axis, axis + 1) else 0) for i, n in enumerate(array.shape)], mode="edge")
    ahead = (slice(None),) * axis
    return [padded[(*ahead, slice(y, None, 2), slice(x, None, 2))] for y in (0, 1) for x in (0, 1)]


def _doubled(array: np.ndarray, axis: int) -> np.ndarray:
    """Twice as long: three quarters of a value and a quarter of the one before it, then of the one after it."""
    length = array.shape[axis]
    before, after = (array.take(np.clip(np.arange(length) + k, 0, length - 1), axis) for k in (-1, 1))
    shape = list(array.shape)
    shape[axis] *= 2
    return np.stack([array + (before - array) / 4, array + (after - array) / 4], axis + 1).reshape(shape)
