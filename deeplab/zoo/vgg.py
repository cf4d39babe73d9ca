"""DeepLab v1 and v2 on VGG-16."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deeplab.networks.deeplab_heads import FeatureBranches, Plain, SummedScores
from deeplab.networks.network import DEEPLAB, SegmentationNetwork
from deeplab.networks.vgg import VGG16FullyConvolutional, VGG16Pyramid
from deeplab.zoo.architecture import Architecture, field_of_view

ASPP_S, ASPP_L = (2, 4, 8, 12), (6, 12, 18, 24)
V1 = "arXiv 1412.7062, Tables 1 and 2"
V2 = "arXiv 1606.00915, Table 3"


def _single(kernel: int, rate: int, filters: int, average: bool, msc: bool) -> Callable[..., SegmentationNetwork]:
    def build_vgg(
        classes: int,
        output_stride: int = 8,
        ceil_pool: bool = True,
        align_corners: bool = True,
        average: bool = average,
        width: float = 1.0,
    ) -> SegmentationNetwork:
        if msc and output_stride != 8:
            raise ValueError(f"output_stride {output_stride}: the feature branches are made for 8")
        backbone = VGG16FullyConvolutional(kernel, rate, filters, output_stride, ceil_pool, average, taps=msc, width=width)
        tapped = (3, *backbone.widths[:4])
        head = FeatureBranches(backbone.channels, classes, tapped) if msc else Plain(backbone.channels, classes)
        return SegmentationNetwork(backbone, head, classes, DEEPLAB, align_corners)

    return build_vgg


def _pyramid(rates: Sequence[int]) -> Callable[..., SegmentationNetwork]:
    def build_pyramid(
        classes: int, output_stride: int = 8, ceil_pool: bool = True, align_corners: bool = True, width: float = 1.0
    ) -> SegmentationNetwork:
        backbone = VGG16Pyramid(rates, output_stride, ceil_pool, width)
        return SegmentationNetwork(backbone, SummedScores(backbone.channels, classes, len(rates)), classes, DEEPLAB, align_corners)

    return build_pyramid


# name, kernel, rate, filters of fc6; val, val + CRF and test without MSc, then with it (arXiv 1412.7062, Tables 1 to 3).
_V1: tuple[tuple[str, int, int, int, tuple[float | None, ...], tuple[float | None, ...]], ...] = (
    ("vgg16-7x7", 7, 4, 4096, (64.38, 67.64, 70.3), (None, None, None)),
    ("vgg16-4x4", 4, 4, 4096, (59.80, 63.74, 66.4), (61.30, 65.21, 67.1)),
    ("vgg16-4x4-hole8", 4, 8, 4096, (63.41, 67.14, None), (None, None, None)),
    ("vgg16-largefov", 3, 12, 1024, (62.25, 67.64, 70.3), (64.21, 68.70, 71.6)),
)


def _v1() -> list[Architecture]:
    entries = []
    for name, kernel, rate, filters, figures, with_features in _V1:
        for suffix, msc, (val, val_crf, test) in (("", False, figures), ("-features", True, with_features)):
            entries.append(
                Architecture(
                    name + suffix,
                    f"DeepLab v1 on VGG-16, fc6 {kernel}x{kernel} with hole {rate}, pool5a"
                    + (", and MSc: scores from the image and four pools as well" if msc else ""),
                    V1,
                    _single(kernel, rate, filters, True, msc),
                    field_of_view(kernel, rate),
                    val,
                    val_crf,
                    test,
                )
            )
    return entries


ENTRIES = (
    *_v1(),
    Architecture(
        "vgg16-v2-largefov",
        "DeepLab v2 on VGG-16: LargeFOV without pool5a",
        V2,
        _single(3, 12, 1024, False, False),
        field_of_view(3, 12),
        65.76,
        69.84,
    ),
    Architecture(
        "vgg16-aspp-s",
        "DeepLab v2 on VGG-16: four fc6-fc7-fc8 branches, rates 2, 4, 8, 12, summed",
        V2,
        _pyramid(ASPP_S),
        field_of_view(3, 12),
        66.98,
        69.73,
    ),
    Architecture(
        "vgg16-aspp-l",
        "DeepLab v2 on VGG-16: four fc6-fc7-fc8 branches, rates 6, 12, 18, 24, summed",
        V2,
        _pyramid(ASPP_L),
        field_of_view(3, 24),
        68.96,
        71.57,
        72.6,
    ),
)
