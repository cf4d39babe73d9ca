"""FCN, DeconvNet and Attention to Scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deeplab.networks.attention import AttentionToScale
from deeplab.networks.deconvnet import DeconvNet
from deeplab.networks.fcn import FCN
from deeplab.networks.network import DEEPLAB, FCN_MEAN, SegmentationNetwork
from deeplab.networks.vgg import VGG16FullyConvolutional
from deeplab.zoo.architecture import Architecture, field_of_view


def _fcn(stride: int, at_once: bool = False) -> Callable[..., SegmentationNetwork]:
    def build_fcn(classes: int, learn_upscore: bool = False, ceil_pool: bool = True, width: float = 1.0) -> SegmentationNetwork:
        return FCN(classes, stride, FCN_MEAN, at_once, learn_upscore, ceil_pool, width)

    return build_fcn


def _deconvnet(classes: int, width: float = 1.0) -> SegmentationNetwork:
    return DeconvNet(classes, FCN_MEAN, width)


def _attention(
    classes: int, scales: Sequence[float] = (1.0, 0.75, 0.5), ceil_pool: bool = True, width: float = 1.0
) -> SegmentationNetwork:
    backbone = VGG16FullyConvolutional(3, 12, 1024, 8, ceil_pool, width=width)
    return AttentionToScale(backbone, classes, DEEPLAB, scales)


_FCN = "arXiv 1411.4038; shelhamer/fcn.berkeleyvision.org"
_SEG11 = "seg11valid (736 images)"

ENTRIES = (
    Architecture("fcn32s", "FCN-32s: VGG-16, pad 100, scores of fc7 upsampled 32 times", _FCN, _fcn(32), field_of_view(7, 1, 32),
                 note=f"63.6 on {_SEG11}"),
    Architecture("fcn16s", "FCN-16s: the same with the scores of pool4 added", _FCN, _fcn(16), field_of_view(7, 1, 32),
                 note=f"65.0 on {_SEG11}"),
    Architecture("fcn8s", "FCN-8s: the same with the scores of pool4 and pool3 added", _FCN, _fcn(8), field_of_view(7, 1, 32),
                 test=62.2, note=f"65.5 on {_SEG11}; 67.2 on seg12test in the repository's README"),
    Architecture("fcn8s-at-once", "FCN-8s trained in one go: pool4 scaled by 0.01, pool3 by 0.0001", _FCN, _fcn(8, at_once=True),
                 field_of_view(7, 1, 32)),
    Architecture("deconvnet", "DeconvNet: VGG-16 with batch norm and its mirror image, unpooling by switches; made for 224 x 224",
                 "arXiv 1505.04366; HyeonwooNoh/DeconvNet", _deconvnet, field_of_view(7, 1, 32), test=69.6,
                 note="proposals; 70.5 with CRF, 72.5 with FCN-8s and CRF"),
    Architecture("vgg16-attention", "Attention to Scale: LargeFOV over scales 1, 0.75, 0.5, weighed per position",
                 "arXiv 1511.03339", _attention, field_of_view(3, 12), test=75.7, note="with COCO pre-training and CRF"),
)  # fmt: skip
