"""One entry of the zoo, with the paper's figures beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deeplab.networks.network import SegmentationNetwork


@dataclass(frozen=True)
class Architecture:
    """A named architecture, its source, and a function that builds it for a number of classes.

    `val`, `val_crf`: the paper's mIoU in percent on PASCAL VOC 2012 val, before and after its CRF; `test`: its best on
    test with this network; None if the paper has none. `note`: what else those figures needed.
    `field_of_view`: (kernel - 1) * rate * stride + 32 pixels of the widest branch, which gives the papers' figures
    (LargeFOV 224); 0 if the head sees the whole image.
    """

    name: str
    summary: str
    source: str
    build: Callable[..., SegmentationNetwork]
    field_of_view: int
    val: float | None = None
    val_crf: float | None = None
    test: float | None = None
    note: str = ""


def field_of_view(kernel: int, rate: int, stride: int = 8) -> int:
    """The field of view of the first fully-connected layer in pixels, counted as in the v1 paper (Table 2)."""
    return (kernel - 1) * rate * stride + 32
