"""Parameters of a dense CRF: two Gaussian kernels, their weights and the number of mean-field iterations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from types import MappingProxyType
from typing import Literal, get_args

Normalization = Literal["symmetric", "after", "before", "none"]


@dataclass(frozen=True)
class CRFParameters:
    """The energy of Krahenbuhl & Koltun 2011, equations (1) to (3), with Potts compatibility.

    iterations: mean-field iterations, 0..1000. pos_w, pos_xy_std: weight and deviation (pixels) of the smoothness
    kernel. bi_w, bi_xy_std, bi_rgb_std: weight and deviations (pixels; intensity units of 0..255) of the appearance
    kernel. A deviation is one number or one per axis (x, y) or channel (r, g, b). Weight 0 leaves a kernel out.
    normalization: "symmetric" is pydensecrf's default, "after" that of the DeepLab authors' code.
    ValueError for values out of range.
    """

    iterations: int = 10
    pos_w: float = 3.0
    pos_xy_std: float | tuple[float, float] = 1.0
    bi_w: float = 4.0
    bi_xy_std: float | tuple[float, float] = 67.0
    bi_rgb_std: float | tuple[float, float, float] = 3.0
    normalization: Normalization = "symmetric"

    def __post_init__(self) -> None:
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or not 0 <= self.iterations <= 1000:
            raise ValueError(f"iterations {self.iterations!r}: an integer from 0 to 1000 is accepted")
        for name in ("pos_w", "bi_w"):
            value = getattr(self, name)
            if not (_is_number(value) and 0 <= value <= 1e4):
                raise ValueError(f"{name} {value!r}: a weight from 0 to 10000 is accepted")
        for name, axes in (("pos_xy_std", 2), ("bi_xy_std", 2), ("bi_rgb_std", 3)):
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,) * axes
            if len(values) != axes or not all(_is_number(v) and 1e-3 <= v <= 1e9 for v in values):
                raise ValueError(f"{name} {value!r}: a deviation from 0.001 to 1e9, or a tuple of {axes}, is accepted")
        if self.normalization not in get_args(Normalization):
            raise ValueError(f"normalization {self.normalization!r}: one of {', '.join(get_args(Normalization))} is accepted")

    @property
    def pos_xy(self) -> tuple[float, float]:
        """Deviations of the smoothness kernel along x and y."""
        return self.pos_xy_std if isinstance(self.pos_xy_std, tuple) else (self.pos_xy_std, self.pos_xy_std)

    @property
    def bi_xy(self) -> tuple[float, float]:
        """Deviations of the appearance kernel along x and y."""
        return self.bi_xy_std if isinstance(self.bi_xy_std, tuple) else (self.bi_xy_std, self.bi_xy_std)

    @property
    def bi_rgb(self) -> tuple[float, float, float]:
        """Deviations of the appearance kernel in red, green and blue."""
        return self.bi_rgb_std if isinstance(self.bi_rgb_std, tuple) else (self.bi_rgb_std,) * 3

    def short(self) -> str:
        """One line for a table: "i10 pos3/1 bi4/67/3 sym"."""
        pos = f"pos{self.pos_w:g}/{_axes(self.pos_xy_std)}"
        bi = f"bi{self.bi_w:g}/{_axes(self.bi_xy_std)}/{_axes(self.bi_rgb_std)}"
        norm = {"symmetric": "sym"}.get(self.normalization, self.normalization)
        return f"i{self.iterations} {pos} {bi} {norm}"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _axes(value: float | tuple[float, ...]) -> str:
    return "x".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:g}"


PARAMETER_SETS: Mapping[str, CRFParameters] = MappingProxyType(
    {
        # The demo prototxt of DeepLab v1 (arXiv 1412.7062): pos_w 3, pos_xy_std 3, bi_w 5, bi_xy_std 50, bi_rgb_std 10,
        # 10 iterations; the authors' densecrf divides by the filtered ones after filtering.
        "deeplab-v1": CRFParameters(10, 3, 3, 5, 50, 10, "after"),
        # DeepLab v2 (arXiv 1606.00915, section 4.1): w2 = 3 and sigma_gamma = 3 fixed; w1 in 3:6, sigma_alpha in 30:10:100 and
        # sigma_beta in 3:6 were searched per network, and only these ranges are published. This is the grid's middle.
        "deeplab-v2": CRFParameters(10, 3, 3, 4, 60, 4, "after"),
        # kazuto1011/deeplab-pytorch, configs: the CRF of the "with CRF" columns of its README, through pydensecrf.
        "kazuto": CRFParameters(10, 3, 1, 4, 67, 3, "symmetric"),
        # isht7/pytorch-deeplab-resnet, comment in its prototxt: pos 4/1, bi 5/21/3, for the authors' in-network layer.
        "isht7": CRFParameters(10, 4, 1, 5, 21, 3, "after"),
        # DeconvNet (arXiv 1505.04366), released demo: Gaussian 3 with weight 3, bilateral 20/3 with weight 5.
        "deconvnet": CRFParameters(10, 3, 3, 5, 20, 3, "after"),
    }
)
