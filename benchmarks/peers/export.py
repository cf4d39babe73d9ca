"""A network of this project as ONNX, for other engines: pixels in, scores out.

    python -m peers.export MODEL NETWORK.onnx PACKAGES

Runs with this project's interpreter and, for `onnx`, the PACKAGES folder of the peers' environment.
"""

from __future__ import annotations

import sys
import warnings

import torch
from torch import nn

from deeplab.models import checkpoint
from deeplab.networks.deeplab_heads import ASPP
from deeplab.networks.network import SegmentationNetwork
from deeplab.scoring.batch_norm_folding import folded


class FromPixels(nn.Module):
    """A network that takes B x H x W x 3 uint8 RGB pixels."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.network(self.network.normalization.apply(pixels.permute(0, 3, 1, 2)))
        return scores


class TapsFirst(nn.Module):
    """ASPP to few classes as engines compute it fastest: one 1x1 convolution to all taps, then dilated ones that place them.

    The scores are the same. 3x3 convolutions from 1280 channels to 3 classes waste most of a vector: OpenVINO takes 0.11 s for
    `pets` with them and 0.094 s so, ONNX Runtime 0.24 and 0.19.
    """

    def __init__(self, head: ASPP) -> None:
        super().__init__()
        weights = [branch.get_parameter("weight").detach() for branch in head.branches]
        classes, channels = weights[0].shape[:2]
        self.taps = nn.Conv2d(channels, len(weights) * 9 * classes, 1, bias=False)
        self.taps.weight.data = torch.cat([weight.permute(2, 3, 0, 1).reshape(-1, channels) for weight in weights])[
            :, :, None, None
        ]
        self.places = nn.ModuleList()
        for branch, rate in zip(head.branches, head.rates, strict=True):
            place = nn.Conv2d(9 * classes, classes, 3, padding=rate, dilation=rate)
            place.weight.data = torch.eye(9 * classes).view(3, 3, classes, 9 * classes).permute(2, 3, 0, 1).contiguous()
            assert place.bias is not None
            place.bias.data = branch.get_parameter("bias").detach()
            self.places.append(place)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *others = self.taps(x).chunk(len(self.places), 1)
        total: torch.Tensor = self.places[0](first)
        for place, taps in zip(list(self.places)[1:], others, strict=True):
            total = total + place(taps)
        return total


def main() -> None:
    model, path, packages = sys.argv[1:]
    sys.path.append(packages)  # behind this project's, which stay the ones that are used
    network = folded(checkpoint.load(model).network)
    if isinstance(network.head, ASPP):
        network.head = TapsFirst(network.head)
    pixels = torch.zeros(1, 129, 161, 3, dtype=torch.uint8)
    warnings.simplefilter("ignore")  # the tracer's, of sizes that the lattice makes odd
    torch.onnx.export(
        FromPixels(network).eval(),
        (pixels,),
        path,
        dynamo=False,
        opset_version=17,
        input_names=["pixels"],
        output_names=["scores"],
        dynamic_axes={"pixels": {1: "height", 2: "width"}, "scores": {2: "rows", 3: "columns"}},
    )


if __name__ == "__main__":
    main()
