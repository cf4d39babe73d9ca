"""DeepLab v2 and v3 on ResNet, and torchvision's FCN on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from deeplab.networks.deeplab_heads import ASPP, LargeFOV, Plain
from deeplab.networks.network import CAFFE, DEEPLAB, TORCHVISION, SegmentationNetwork
from deeplab.networks.resnet import ResNet
from deeplab.networks.torchvision_heads import ConvolutionalFCNHead, DeepLabV3Head
from deeplab.zoo.architecture import Architecture, field_of_view

RATES = (6, 12, 18, 24)  # ASPP-L, the paper's best on VGG and on ResNet: arXiv 1606.00915, section 4.1.2
MEANS = {"imagenet": CAFFE, "deeplab": DEEPLAB}  # the mean to subtract: MSRA's, or as DeepLab's prototxts round it
Head = Literal["aspp", "largefov", "plain"]


def _v2(depth: int, kind: Head) -> Callable[..., SegmentationNetwork]:
    def build_resnet(
        classes: int,
        output_stride: int = 8,
        stride_in: str = "1x1",
        ceil_pool: bool = True,
        dilate_first: bool = True,
        eps: float = 1e-5,
        align_corners: bool = True,
        mean: str = "imagenet",
        trained_stride: int | None = None,
    ) -> SegmentationNetwork:
        if mean not in MEANS:
            raise ValueError(f"mean {mean!r}: {', '.join(map(repr, MEANS))} are accepted")
        backbone = ResNet(depth, output_stride, stride_in, ceil_pool, dilate_first, eps)  # type: ignore[arg-type]
        # Rates are for stride 8; scaling them keeps the field of view in pixels.
        if kind == "aspp":
            head: ASPP | LargeFOV | Plain = ASPP(ResNet.channels, classes, [rate * 8 // output_stride for rate in RATES])
        elif kind == "largefov":
            head = LargeFOV(ResNet.channels, classes, 12 * 8 // output_stride)
        else:
            head = Plain(ResNet.channels, classes)
        return SegmentationNetwork(backbone, head, classes, MEANS[mean], align_corners, trained_stride=trained_stride)

    return build_resnet


def _torchvision(depth: int, pyramid: bool) -> Callable[..., SegmentationNetwork]:
    def build_torchvision(
        classes: int,
        output_stride: int = 8,
        stride_in: str = "3x3",
        ceil_pool: bool = False,
        dilate_first: bool = False,
        eps: float = 1e-5,
        align_corners: bool = False,
        trained_stride: int | None = None,
    ) -> SegmentationNetwork:
        backbone = ResNet(depth, output_stride, stride_in, ceil_pool, dilate_first, eps)  # type: ignore[arg-type]
        if pyramid:
            rates = [rate * 8 // output_stride for rate in (12, 24, 36)]
            head: DeepLabV3Head | ConvolutionalFCNHead = DeepLabV3Head(ResNet.channels, classes, rates)
        else:
            head = ConvolutionalFCNHead(ResNet.channels, classes)
        return SegmentationNetwork(backbone, head, classes, TORCHVISION, align_corners, trained_stride=trained_stride)

    return build_torchvision


_NOTE = "with MSC, COCO pre-training and scale augmentation, as all of Table 4's later rows"
_HEADS: tuple[tuple[Head, str, int, float, float | None, float | None, str], ...] = (
    ("aspp", "summed ASPP, rates 6, 12, 18, 24 (with scales 0.5, 0.75, 1 and max fusion the paper's MSC)", field_of_view(3, 24),
     76.35, 77.69, 79.7, _NOTE),
    ("largefov", "one 3x3 convolution with rate 12", field_of_view(3, 12), 75.54, None, None, _NOTE),
    ("plain", "one 1x1 convolution", field_of_view(1, 1), 68.72, None, None, "one scale, ImageNet weights"),
)  # fmt: skip


def _entries() -> list[Architecture]:
    entries = []
    for depth in (101, 50):
        for kind, words, view, val, val_crf, test, note in _HEADS:
            figures = (val, val_crf, test, note) if depth == 101 else (None, None, None, "the paper has no ResNet-50")
            entries.append(
                Architecture(
                    f"resnet{depth}-{kind}",
                    f"DeepLab v2: ResNet-{depth} in Caffe's layout, {words}",
                    "arXiv 1606.00915, Table 4",
                    _v2(depth, kind),
                    view,
                    *figures,
                )
            )
    weights = {101: "67.4 with torchvision's own weights", 50: "66.4 with torchvision's own weights"}
    for depth in (101, 50):
        entries.append(
            Architecture(
                f"resnet{depth}-aspp-v3",
                f"DeepLab v3's head (1x1, three dilated 3x3, image pooling) on ResNet-{depth}, torchvision's geometry",
                "arXiv 1706.05587; torchvision deeplabv3",
                _torchvision(depth, True),
                0,
                note=f"{weights[depth]} (COCO val2017, VOC's classes)",
            )
        )
        entries.append(
            Architecture(
                f"resnet{depth}-fcn",
                f"torchvision's fcn_resnet{depth}: a 3x3 and a 1x1 convolution on the dilated ResNet-{depth}",
                "torchvision fcn_resnet; not in the papers",
                _torchvision(depth, False),
                field_of_view(3, 1),
            )
        )
    return entries


ENTRIES = tuple(_entries())
