"""How a network is applied to an image, and the line of a results table that tells of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from deeplab.images.decoding import LEAST_STRIDE

Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]
Fusion = Literal["max", "mean"]
Quality = Literal["draft", "standard", "best"]
SCALES = 0.1, 4.0  # the least and the largest: smaller ones leave a photo a handful of scores


@dataclass(frozen=True)
class Scoring:
    """How a network is applied to an image. ValueError for values out of range."""

    scales: tuple[float, ...] = (1.0,)
    """Factors of the input, each from 0.1 to 4."""
    flip: bool = False
    """Also score the mirror image, and average."""
    fusion: Fusion = "max"
    """How the scores of several scales become one: "max" as in DeepLab v2, or "mean"."""
    precision: Precision = "auto"
    """Of the arithmetic. "auto" is float16 on a GPU, and `deeplab.devices.best_precision` on a CPU. "int8" is for CPUs and
    networks with a quantization."""
    tile: int = 1025
    """Pixels: an image of more than `tile` x `tile` is scored in tiles of that side."""
    overlap: int = 128
    """Pixels that neighbouring tiles share."""

    def __post_init__(self) -> None:
        if not self.scales or any(not SCALES[0] <= scale <= SCALES[1] for scale in self.scales):
            raise ValueError(f"scales {self.scales}: one or more factors from {SCALES[0]:g} to {SCALES[1]:g} are accepted")
        if self.fusion not in get_args(Fusion):
            raise ValueError(f"fusion {self.fusion!r}: 'max' and 'mean' are accepted")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision {self.precision!r}: 'auto', 'float32', 'bfloat16', 'float16' and 'int8' are accepted")
        if not 0 <= self.overlap <= self.tile - LEAST_STRIDE:
            raise ValueError(
                f"tile {self.tile}, overlap {self.overlap}: the tile must exceed the overlap by at least {LEAST_STRIDE} pixels"
            )

    def short(self, stride: int, precision: str | None = None) -> str:
        """One line for a table: "stride8 scales0.5/0.75/1 max flip tile1025/128 bfloat16".

        stride: of the network's scores; precision: what "auto" became.
        """
        scales = "/".join(f"{scale:g}" for scale in self.scales)
        fusion, flip = [self.fusion] * (len(self.scales) > 1), ["flip"] * self.flip
        tiles = f"tile{self.tile}/{self.overlap}"
        return " ".join([f"stride{stride}", f"scales{scales}", *fusion, *flip, tiles, precision or self.precision])


PLAIN = Scoring()


def alike(scored: str, other: str, precision: Precision) -> bool:
    """Whether two texts of a row's `scored` tell of equal settings. The word of a quality is no setting, and with "auto" a
    device chooses the precision."""

    def settings(text: str) -> list[str]:
        words = [word for word in text.split() if word not in get_args(Quality)]
        return [word for word in words if precision != "auto" or word not in get_args(Precision)]

    return settings(scored) == settings(other)
