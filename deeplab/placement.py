"""Where the scores of an image lie on its pixels, and the geometry with which a model's images are scaled and padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal, get_args

import numpy as np

MOST_LEAST_SIDE = 4096
FARTHEST = 1e9  # within float32, in which the CRF's engine computes positions

Scaling = Literal["corners", "areas"]


@dataclass(frozen=True)
class Axis:
    """`count` values along one side: pixel y reads position `y * step + shift`, clamped to the first and the last value.

    ValueError for no values and for numbers that are not finite.
    """

    count: int
    step: float
    shift: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.step <= FARTHEST or not abs(self.shift) <= FARTHEST:
            raise ValueError(f"{self}: at least one value, a step from 0 and a shift, both up to {FARTHEST:g}, are accepted")

    @classmethod
    def stepping(cls, count: int, step: float, align_corners: bool) -> Axis:
        """A step that does not depend on the sizes, as scores have at a stride: value i stays on pixel i / step.

        Without `align_corners` pixels and values are areas that begin together: pixel y reads (y + 0.5) * step - 0.5.
        """
        return cls(count, step, 0.0 if align_corners else 0.5 * step - 0.5)

    @classmethod
    def resized(cls, count: int, pixels: int, align_corners: bool) -> Axis:
        """The first and the last value lie on the ends of `pixels` pixels, as in `F.interpolate(size=pixels)`."""
        if align_corners:
            return cls(count, (count - 1) / (pixels - 1) if pixels > 1 else 0.0)
        return cls.stepping(count, count / pixels, False)

    def places(self, pixels: int) -> tuple[np.ndarray, np.ndarray]:
        """For each pixel from 0 on: the value at or before its position (int64), and the distance to it (float64, 0..1)."""
        position = np.clip(np.arange(pixels) * self.step + self.shift, 0, self.count - 1)
        low = np.minimum(position.astype(np.int64), max(self.count - 2, 0))
        return low, position - low

    def window(self, start: int, stop: int) -> tuple[slice, Axis]:
        """The values that pixels start..stop - 1 read, and the axis of these values along these pixels."""
        last = self.count - 1
        first, end = (min(max(at * self.step + self.shift, 0), last) for at in (start, stop - 1))
        values = slice(floor(first), ceil(end) + 1)
        return values, Axis(values.stop - values.start, self.step, start * self.step + self.shift - values.start)


@dataclass(frozen=True)
class Placement:
    """The two axes of scores on an image: rows along its height, columns along its width."""

    rows: Axis
    columns: Axis

    @classmethod
    def stepping(cls, grid: Sequence[int], step: float, align_corners: bool = True) -> Placement:
        """`Axis.stepping` for `grid` (rows, columns)."""
        return cls(*(Axis.stepping(count, step, align_corners) for count in grid))

    @classmethod
    def on_pixels(cls, size: Sequence[int]) -> Placement:
        """A value on every pixel of `size` (height, width)."""
        return cls.stepping(size, 1.0)

    @classmethod
    def resized(cls, grid: Sequence[int], size: Sequence[int], align_corners: bool) -> Placement:
        """`Axis.resized` for `grid` (rows, columns) and `size` (height, width)."""
        return cls(*(Axis.resized(count, pixels, align_corners) for count, pixels in zip(grid, size, strict=True)))


@dataclass(frozen=True)
class Geometry:
    """How a model's images are padded and scaled, and where its scores lie. The defaults are this package's own.

    ValueError for values out of range.
    """

    scales: Scaling = "corners"
    """A scaled image: "corners" has int((n - 1) s) + 1 pixels a side, corner on corner (Caffe's Interp); "areas" has int(n s),
    with pixels as areas (`align_corners=False`). Its scores are read at the same places of scale 1's grid."""
    align_corners: bool = True
    """How scores become pixels: score i on pixel stride * i, or scores and pixels as areas."""
    padded: bool = True
    """Images are padded at the bottom and right to sides of stride * k + 1, on which the positions of scores do not depend on
    the size; False: scored at their own size, and scores are resized to it."""
    least_side: int = 1
    """Padded images have at least this many pixels a side, such as the official code's test crop."""
    exact_mean: bool = False
    """Padding is exactly zero after normalisation; False: the mean colour in whole numbers."""

    def __post_init__(self) -> None:
        if self.scales not in get_args(Scaling):
            raise ValueError(f"geometry: scales {self.scales!r}: 'corners' and 'areas' are accepted")
        for name in ("align_corners", "padded", "exact_mean"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"geometry: {name} {getattr(self, name)!r}: true and false are accepted")
        side = self.least_side
        if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= MOST_LEAST_SIDE:
            raise ValueError(f"geometry: least_side {side!r}: 1 to {MOST_LEAST_SIDE} pixels are accepted")
        if not self.padded and (side > 1 or self.exact_mean):
            raise ValueError("geometry: least_side and exact_mean describe padding: they need padded")

    def scaled_side(self, side: int, scale: float) -> int:
        """The pixels of a side of a scaled image, before padding."""
        return int((side - 1) * scale) + 1 if self.scales == "corners" else max(1, int(side * scale))

    def scaled_image(self, size: Sequence[int], scale: float) -> Placement:
        """Where the pixels of a scaled image read the image of `size` (height, width)."""
        return Placement.stepping(size, 1.0 / scale, self.scales == "corners")

    def scaled_scores(self, scaled: Sequence[int], grid: Sequence[int], scale: float) -> Placement:
        """Where scores of scale 1, rows x columns of `grid`, read those of a scaled image, `scaled` rows x columns."""
        aligned = self.scales == "corners"
        return Placement.stepping(scaled, scale, aligned) if self.padded else Placement.resized(scaled, grid, aligned)

    def scores(self, grid: Sequence[int], size: Sequence[int], stride: int) -> Placement:
        """Where the pixels of an image of `size` (height, width) read its scores, `grid` (rows, columns) at `stride`."""
        if self.padded:
            return Placement.stepping(grid, 1.0 / stride, self.align_corners)
        return Placement.resized(grid, size, self.align_corners)
