"""Named architectures, each with the paper it follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch

from deeplab.heads import ASPP
from deeplab.mobilenet import MobileNetV2
from deeplab.network import CAFFE, TENSORFLOW, SegmentationNetwork
from deeplab.resnet import ResNet

RATES = (6, 12, 18, 24)  # ASPP-L, arXiv 1606.00915, section 4.1.2: the best of the paper's, on VGG and on ResNet


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
    rates = [rate * 8 // output_stride for rate in RATES]
    return SegmentationNetwork(backbone, ASPP(MobileNetV2.channels, classes, rates), classes, TENSORFLOW)


def _resnet_aspp(depth: int) -> Callable[..., SegmentationNetwork]:
    def build_resnet(
        classes: int,
        output_stride: int = 8,
        stride_in: str = "1x1",
        ceil_pool: bool = True,
        dilate_first: bool = True,
        eps: float = 1e-5,
    ) -> SegmentationNetwork:
        backbone = ResNet(depth, output_stride, stride_in, ceil_pool, dilate_first, eps)  # type: ignore[arg-type]
        rates = [rate * 8 // output_stride for rate in RATES]
        return SegmentationNetwork(backbone, ASPP(ResNet.channels, classes, rates), classes, CAFFE)

    return build_resnet


ARCHITECTURES = {
    entry.name: entry
    for entry in (
        Architecture(
            "mobilenet-v2-aspp",
            "MobileNetV2 with holes and DeepLab v2's summed ASPP (rates 6, 12, 18, 24 at stride 8)",
            "backbone arXiv 1801.04381; head arXiv 1606.00915, section 3.2",
            _mobilenet_v2_aspp,
        ),
        Architecture(
            "resnet101-aspp",
            "DeepLab v2: ResNet-101 in Caffe's layout, summed ASPP; with scales 0.5, 0.75, 1 and max fusion the paper's MSC",
            "arXiv 1606.00915, Table 4: VOC 2012 val 76.35, with CRF 77.69 (COCO pre-training, MSC, scale augmentation)",
            _resnet_aspp(101),
        ),
        Architecture(
            "resnet50-aspp",
            "The same with ResNet-50's shorter third stage",
            "layout as resnet101-aspp; the paper has no figure for it",
            _resnet_aspp(50),
        ),
    )
}


def build(name: str, classes: int, *, seed: int | None = None, **options: Any) -> SegmentationNetwork:
    """A freshly initialised network by its zoo name; the same one for the same `seed`.

    ValueError for an unknown name, with the nearest one.
    """
    if name not in ARCHITECTURES:
        near = get_close_matches(name, ARCHITECTURES, n=1, cutoff=0.0)
        raise ValueError(f"unknown architecture {name!r}; nearest: {near[0]}; known: {', '.join(ARCHITECTURES)}")
    if seed is not None:
        torch.manual_seed(seed)
    return ARCHITECTURES[name].build(classes, **options)
