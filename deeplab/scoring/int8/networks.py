"""The steps of each kind of network that can be computed in int8."""

from __future__ import annotations

from torch import nn

from deeplab.networks.deeplab_heads import ASPP, LargeFOV, Plain, SummedScores
from deeplab.networks.mobilenet import MobileNetV2
from deeplab.networks.network import SegmentationNetwork
from deeplab.networks.resnet import Bottleneck, ResNet
from deeplab.networks.torchvision_heads import ConvolutionalFCNHead, DeepLabV3ASPP, DeepLabV3Head, ImagePooling
from deeplab.networks.vgg import VGG16, FullyConnected, VGG16FullyConvolutional, VGG16Pyramid
from deeplab.scoring.batch_norm_folding import Activation, Convolution, folded_convolution
from deeplab.scoring.int8.steps import PIXELS, Branch, Convolved, ImageMean, MaxPool, Scores, Steps
from deeplab.scoring.native.layers import Backbone, Layers, Pyramid, backbone_of, layers_of
from deeplab.scoring.native.program import pooled_share

KINDS = (
    "MobileNetV2 networks (mobilenet-v2-...), ResNet networks (resnet50-..., resnet101-...) "
    "and VGG-16 networks (vgg16-..., without -features and -attention)"
)


def steps_of(network: SegmentationNetwork) -> Steps | None:
    """The steps of a network, whose batch norm may be folded already; None if it is of another kind than KINDS."""
    known = layers_of(network)
    if known is not None:
        return _mobilenet(known)
    if type(network) is not SegmentationNetwork:
        return None
    steps, backbone, head = Steps(network.normalization), network.backbone, network.head
    if isinstance(backbone, ResNet):
        features: tuple[int, ...] = (_resnet(steps, backbone),)
    elif isinstance(backbone, MobileNetV2) and network.normalization.order == "RGB" and (layers := backbone_of(backbone)):
        features = (_mobilenet_features(steps, layers),)
    elif isinstance(backbone, VGG16Pyramid) or (isinstance(backbone, VGG16FullyConvolutional) and not backbone.taps):
        features = _vgg(steps, backbone)
    else:
        return None
    return steps if _head(steps, head, features) else None


def _mobilenet(layers: Layers) -> Steps:
    steps = Steps(layers.normalization)
    x = _mobilenet_features(steps, layers.backbone)
    head = layers.head
    if isinstance(head, Pyramid):
        steps.add(Scores(tuple(Branch(x, branch, rate) for branch, rate in zip(head.branches, head.rates, strict=True))))
        return steps
    means = steps.add(ImageMean(x, head.pooling))
    between = steps.add(Convolved((x,), head.convolution))
    share, projection = pooled_share(head.project)
    result = steps.add(Convolved((between,), projection, pooled=(means, share)))
    steps.add(Scores((Branch(result, head.score),)))
    return steps


def _mobilenet_features(steps: Steps, backbone: Backbone) -> int:
    # Photos are padded to lattice sizes, where both kinds of padding are one pixel at each end.
    x = steps.add(Convolved((PIXELS,), backbone.stem, 2, 1, 1))
    for block in backbone.blocks:
        hidden = steps.add(Convolved((x,), block.expand)) if block.expand else x
        hidden = steps.add(Convolved((hidden,), block.depthwise, block.stride, block.rate, block.rate))
        x = steps.add(Convolved((hidden,), block.project, shortcut=x if block.shortcut else None))
    return steps.add(Convolved((x,), backbone.last)) if backbone.last else x


def _convolved(
    steps: Steps,
    sources: tuple[int, ...],
    conv: nn.Module,
    norm: nn.Module | None = None,
    activation: Activation = "relu",
    shortcut: int | None = None,
    pooled: tuple[int, int] | None = None,
) -> int:
    """Append one of a network's convolutions. pooled: the value of an `ImageMean`, and its channels, the last of the inputs."""
    assert isinstance(conv, nn.Conv2d) and not isinstance(conv.padding, str)
    convolution, mean = folded_convolution(conv, norm, activation), None
    if sources == (PIXELS,) and steps.normalization.order == "BGR":
        convolution = Convolution(convolution.weight[:, ::-1], convolution.bias, activation)
    if pooled:
        value, channels = pooled
        weight = convolution.weight
        convolution, mean = Convolution(weight[:, :-channels], convolution.bias, activation), (value, weight[:, -channels:, 0, 0])
    stride, rate, padding = int(conv.stride[0]), int(conv.dilation[0]), int(conv.padding[0])
    return steps.add(Convolved(sources, convolution, stride, rate, padding, shortcut, mean))


def _resnet(steps: Steps, backbone: ResNet) -> int:
    x = _convolved(steps, (PIXELS,), backbone.conv1, backbone.bn1)
    x = steps.add(MaxPool(x, 3, 2, 1, backbone.ceil_pool))
    for block in (block for stage in backbone.layers()[2:] for block in stage.children()):
        assert isinstance(block, Bottleneck)
        y = _convolved(steps, (x,), block.conv1, block.bn1)
        y = _convolved(steps, (y,), block.conv2, block.bn2)
        if block.downsample is not None:
            conv, norm = block.downsample
            x = _convolved(steps, (x,), conv, norm, "none")
        x = _convolved(steps, (y,), block.conv3, block.bn3, shortcut=x)
    return x


def _vgg(steps: Steps, backbone: VGG16Pyramid | VGG16FullyConvolutional) -> tuple[int, ...]:
    x = _vgg_features(steps, backbone)
    branches = backbone.branches if isinstance(backbone, VGG16Pyramid) else [backbone.fc]
    results = []
    for branch in branches:
        assert isinstance(branch, FullyConnected)
        results.append(_convolved(steps, (_convolved(steps, (x,), branch.fc6),), branch.fc7))
    return tuple(results)


def _vgg_features(steps: Steps, backbone: VGG16) -> int:
    x, channels = PIXELS, 3
    for module in backbone.features:
        if isinstance(module, nn.Conv2d):
            x, channels = _convolved(steps, (x,), module), module.out_channels
        elif isinstance(module, nn.MaxPool2d):
            kernel, stride, padding = module.kernel_size, module.stride, module.padding
            assert isinstance(kernel, int) and isinstance(stride, int) and isinstance(padding, int)
            x = steps.add(MaxPool(x, kernel, stride, padding, module.ceil_mode))
        elif isinstance(module, nn.AvgPool2d):  # 3x3 with zeros around the map, as pool5a
            mean = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False)
            nn.init.constant_(mean.weight, 1 / 9)
            x = _convolved(steps, (x,), mean)
    return x


def _head(steps: Steps, head: nn.Module, features: tuple[int, ...]) -> bool:
    """Append a head; False for another kind."""
    top = features[0]
    if isinstance(head, ASPP):
        branches = [(top, branch, rate) for branch, rate in zip(head.branches, head.rates, strict=True)]
    elif isinstance(head, LargeFOV):
        branches = [(top, head.score, head.rate)]
    elif isinstance(head, Plain):
        branches = [(top, head.score, 1)]
    elif isinstance(head, SummedScores):
        branches = [(source, score, 1) for source, score in zip(features, head.scores, strict=True)]
    elif isinstance(head, ConvolutionalFCNHead):
        branches = [(_convolved(steps, (top,), head[0], head[1]), head[4], 1)]
    elif isinstance(head, DeepLabV3Head):
        branches = [(_convolved(steps, (_pyramid_v3(steps, head, top),), head[1], head[2]), head[4], 1)]
    else:
        return False
    steps.add(Scores(tuple(Branch(source, folded_convolution(conv, None), rate) for source, conv, rate in branches)))
    return True


def _pyramid_v3(steps: Steps, head: DeepLabV3Head, top: int) -> int:
    pyramid = head[0]
    assert isinstance(pyramid, DeepLabV3ASPP)
    *branches, pooling = pyramid.convs
    assert isinstance(pooling, ImagePooling)
    convolution = folded_convolution(pooling[1], pooling[2], "relu")
    means = steps.add(ImageMean(top, convolution))
    results = []
    for branch in branches:
        conv, norm, _ = branch.children()
        results.append(_convolved(steps, (top,), conv, norm))
    conv, norm, *_ = pyramid.project
    return _convolved(steps, tuple(results), conv, norm, pooled=(means, len(convolution.bias)))
