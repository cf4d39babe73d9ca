"""Checks of the CRF's input, the same for every backend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deeplab.placement import Axis, Placement


@dataclass(frozen=True)
class Grid:
    """Scores or probabilities on a grid: float32 C x h x w, contiguous, and where they lie on the image."""

    values: np.ndarray
    placement: Placement
    probabilities: bool
    full_size: bool


def check_image(image: object) -> np.ndarray:
    """H x W x 3 uint8 RGB as a contiguous array. ValueError for anything else: the image is never cast."""
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image is a {type(image).__name__}: a numpy array H x W x 3 uint8 RGB is accepted")
    if image.dtype != np.uint8:
        raise ValueError(
            f"image is {image.dtype}: the raw uint8 RGB image is accepted; a normalised or mean-subtracted one guides wrongly"
        )
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image of shape {image.shape}: H x W x 3, at least 1 x 1, is accepted")
    if max(image.shape[:2]) > 65535:
        raise ValueError(f"image of {image.shape[0]} x {image.shape[1]}: at most 65535 pixels a side; refine it in windows")
    return np.ascontiguousarray(image)


def check_grid(
    image: np.ndarray,
    scores: object,
    probabilities: object,
    stride: float | None,
    align_corners: bool,
    placement: Placement | None = None,
) -> Grid:
    """Whichever of scores and probabilities is not None, as a Grid. ValueError for shapes and dtypes that do not fit."""
    if (scores is None) == (probabilities is None):
        raise ValueError("give either scores (class logits) or probabilities (their softmax), and not both")
    name = "scores" if probabilities is None else "probabilities"
    values = scores if probabilities is None else probabilities
    if not isinstance(values, np.ndarray):
        raise ValueError(f"{name} is a {type(values).__name__}: a numpy array C x h x w is accepted")
    if values.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(f"{name} are {values.dtype}: float16, float32 and float64 are accepted")
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(f"{name} of shape {values.shape}: C x h x w with at least one class is accepted")
    if values.shape[0] > 65536:
        raise ValueError(f"{values.shape[0]} classes: at most 65536 are accepted")
    height, width = image.shape[:2]
    if placement is not None:
        if stride is not None:
            raise ValueError("give either stride or placement, and not both")
        if values.shape[1:] != (placement.rows.count, placement.columns.count):
            raise ValueError(
                f"{name} of {values.shape[1]} x {values.shape[2]} with the placement of "
                f"{placement.rows.count} x {placement.columns.count}"
            )
    elif stride is None:
        if values.shape[1:] != (height, width):
            raise ValueError(
                f"{name} of {values.shape[1]} x {values.shape[2]} for an image of {height} x {width}: "
                "give the network's stride, or values at the image's size"
            )
        placement = Placement.on_pixels(values.shape[1:])
    else:
        if isinstance(stride, bool) or not isinstance(stride, (int, float)) or not 1 <= stride <= 1024:
            raise ValueError(f"stride {stride!r}: pixels per score, from 1 to 1024, is accepted")
        for side, length, count in (("rows", height, values.shape[1]), ("columns", width, values.shape[2])):
            if not length - 2 * stride < count * stride < length + 5 * stride:
                expected = -(-(length - 1) // int(stride)) + 1
                raise ValueError(f"{count} {side} of {name} at stride {stride} for {length} pixels: about {expected} are accepted")
        placement = Placement.stepping(values.shape[1:], 1.0 / stride, align_corners)
    # float64 values beyond float32's range become infinite, and are refused later with other non-finite values.
    with np.errstate(over="ignore"):
        dense = np.ascontiguousarray(values, dtype=np.float32)
    full_size = placement == Placement.on_pixels((height, width))
    return Grid(dense, placement, probabilities is not None, full_size)


def upsampled(grid: Grid, height: int, width: int) -> np.ndarray:
    """Unary logits C x height x width: interpolated scores, or the log of interpolated probabilities (at least 1e-5).

    For backends that need full-size planes; the native engine interpolates on the fly. ValueError as `check_values`.
    """
    values = check_values(grid)
    if not grid.full_size:
        values = _along(_along(values, 1, height, grid.placement.rows), 2, width, grid.placement.columns)
    return np.log(np.maximum(values, 1e-5)) if grid.probabilities else values


def check_values(grid: Grid) -> np.ndarray:
    """The grid's values. ValueError for values that are not finite, and for probabilities that do not sum to one."""
    values = grid.values
    if not (np.abs(values) <= 1e30).all():
        raise ValueError("scores or probabilities contain NaN, infinity or a magnitude above 1e30: finite values are accepted")
    if grid.probabilities and ((values < -1e-3).any() or (np.abs(values.sum(0) - 1) >= 0.02).any()):
        raise ValueError(
            "probabilities are negative or do not sum to one over the classes (within 0.02): "
            "give a softmax, or pass logits as scores"
        )
    return values


def _along(values: np.ndarray, side: int, pixels: int, axis: Axis) -> np.ndarray:
    """Interpolate dimension `side` of `values` to `pixels`."""
    low, weight = axis.places(pixels)
    shape = [1, 1, 1]
    shape[side] = pixels
    before, after = values.take(low, side), values.take(np.minimum(low + 1, axis.count - 1), side)
    interpolated: np.ndarray = before + weight.astype(np.float32).reshape(shape) * (after - before)
    return interpolated
