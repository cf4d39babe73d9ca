"""DeepLab v2's and v3's heads on MobileNetV2 and V3, for CPUs."""

from __future__ import annotations

from deeplab.networks.deeplab_heads import ASPP
from deeplab.networks.image_pooling_head import ImagePoolingHead, ShortMobileNetV2
from deeplab.networks.mobilenet import MobileNetV2
from deeplab.networks.mobilenet_v3 import MobileNetV3
from deeplab.networks.network import MOBILE, TENSORFLOW, TORCHVISION, SegmentationNetwork
from deeplab.networks.torchvision_heads import DeepLabV3Head
from deeplab.zoo.architecture import Architecture, field_of_view
from deeplab.zoo.resnet import RATES


# `trained_stride`: of the weights, if it is coarser than `output_stride` (deeplab.networks.network.mixed_grids).
def _aspp(classes: int, output_stride: int = 8, padding: str = "same", trained_stride: int | None = None) -> SegmentationNetwork:
    backbone = MobileNetV2(output_stride, padding)  # type: ignore[arg-type]
    # RATES are for stride 8; scaling them keeps the field of view in pixels (as in DeepLab v3).
    rates = [rate * 8 // output_stride for rate in RATES]
    head = ASPP(MobileNetV2.channels, classes, rates)
    return SegmentationNetwork(backbone, head, classes, TENSORFLOW, trained_stride=trained_stride)


def _v2_with_v3_head(
    classes: int, output_stride: int = 8, padding: str = "same", align_corners: bool = True, trained_stride: int | None = None
) -> SegmentationNetwork:
    backbone = MobileNetV2(output_stride, padding)  # type: ignore[arg-type]
    head = DeepLabV3Head(MobileNetV2.channels, classes, [rate * 8 // output_stride for rate in (12, 24, 36)])
    return SegmentationNetwork(backbone, head, classes, TENSORFLOW, align_corners, trained_stride=trained_stride)


def _short(classes: int, output_stride: int = 16, padding: str = "same", trained_stride: int | None = None) -> SegmentationNetwork:
    backbone = ShortMobileNetV2(output_stride, padding)  # type: ignore[arg-type]
    head = ImagePoolingHead(ShortMobileNetV2.channels, classes)
    return SegmentationNetwork(backbone, head, classes, MOBILE, trained_stride=trained_stride)


def _v3(classes: int, output_stride: int = 16, align_corners: bool = False) -> SegmentationNetwork:
    # torchvision uses rates 12, 24, 36 at this net's stride 16, too.
    return SegmentationNetwork(
        MobileNetV3(output_stride), DeepLabV3Head(MobileNetV3.channels, classes), classes, TORCHVISION, align_corners
    )


ENTRIES = (
    Architecture(
        "mobilenet-v2-aspp",
        "MobileNetV2 with holes and DeepLab v2's summed ASPP (rates 6, 12, 18, 24 at stride 8)",
        "backbone arXiv 1801.04381; head arXiv 1606.00915, section 3.2",
        _aspp,
        field_of_view(3, 24),
    ),
    Architecture(
        "mobilenet-v2-aspp-v3",
        "MobileNetV2 with holes and DeepLab v3's head",
        "backbone arXiv 1801.04381; head arXiv 1706.05587",
        _v2_with_v3_head,
        0,
    ),
    Architecture(
        "mobilenet-v2-image-pooling",
        "MobileNetV2 with holes, image pooling beside a 1x1 convolution (Google's mobilenet_v2_dm)",
        "arXiv 1801.04381, section 6.3",
        _short,
        0,
        note="75.32 in the paper at stride 16 (COCO init)",
    ),
    Architecture(
        "mobilenet-v3-aspp-v3",
        "torchvision's deeplabv3_mobilenet_v3_large: MobileNetV3-Large at stride 16 and DeepLab v3's head",
        "backbone arXiv 1905.02244; torchvision deeplabv3_mobilenet_v3_large",
        _v3,
        0,
        note="60.3 with torchvision's own weights (COCO val2017, VOC's classes)",
    ),
)
