"""Named architectures, each with the paper it follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from deeplab.heads import ASPP
from deeplab.mobilenet import MobileNetV2
from deeplab.network import TENSORFLOW, SegmentationNetwork


@dataclass(frozen=True)
class Architecture:
    """One entry of the zoo: what it is, where it comes from, and how it is built for a number of classes."""

    name: str
    summary: str
    source: str
    build: Callable[..., SegmentationNetwork]


def _mobilenet_v2_aspp(classes: int, output_stride: int = 8, padding: str = "same") -> SegmentationNetwork:
    backbone = MobileNetV2(output_stride, padding)  # type: ignore[arg-type]
    # Rates are given at stride 8 and follow the stride, so that the field of view in pixels stays (as in DeepLab v3).
    rates = [rate * 8 // output_stride for rate in (6, 12, 18, 24)]
    return SegmentationNetwork(backbone, ASPP(MobileNetV2.channels, classes, rates), classes, TENSORFLOW)


ARCHITECTURES = {
    entry.name: entry
    for entry in (
        Architecture(
            "mobilenet-v2-aspp",
            "MobileNetV2 with holes and DeepLab v2's summed ASPP (rates 6, 12, 18, 24 at stride 8)",
            "backbone arXiv 1801.04381; head arXiv 1606.00915, section 3.2",
            _mobilenet_v2_aspp,
        ),
    )
}


def build(name: str, classes: int, **options: Any) -> SegmentationNetwork:
    """A freshly initialised network by its zoo name. ValueError for an unknown name, with the nearest one."""
    if name not in ARCHITECTURES:
        near = get_close_matches(name, ARCHITECTURES, n=1, cutoff=0.0)
        raise ValueError(f"unknown architecture {name!r}; nearest: {near[0]}; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name].build(classes, **options)
