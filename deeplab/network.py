"""A segmentation network: a backbone with holes and a head on top, with the geometry both were built for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Normalization:
    """How pixels (0..255, RGB) become a backbone's input: channel order, then (x - mean) / std per input channel."""

    order: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def apply(self, pixels: torch.Tensor) -> torch.Tensor:
        """B x 3 x H x W, RGB, 0..255, any dtype -> float32 of the same shape in the backbone's convention."""
        pixels = pixels.to(torch.float32)
        if self.order == "BGR":
            pixels = pixels.flip(1)
        mean = torch.tensor(self.mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, 3, 1, 1)
        return (pixels - mean) / std

    @property
    def mean_rgb(self) -> tuple[float, float, float]:
        """The colour (RGB, 0..255) that normalises to zero: what images are padded with."""
        return self.mean if self.order == "RGB" else (self.mean[2], self.mean[1], self.mean[0])


# Caffe's ImageNet mean, in B, G, R (the VGG and MSRA ResNet weights); MobileNetV2 as Google trained it.
CAFFE = Normalization("BGR", (103.939, 116.779, 123.68), (1.0, 1.0, 1.0))
TENSORFLOW = Normalization("RGB", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5))


class SegmentationNetwork(nn.Module):
    """backbone -> head: normalised B x 3 x H x W in, class scores (logits) B x C x h x w out.

    `normalization` says what input the weights expect. `align_corners` is the geometry in which scores are brought
    to image size: with sides of `stride * k + 1` (the lattice) score i lies exactly on pixel `stride * i`.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, classes: int, normalization: Normalization, align_corners: bool = True
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.classes = classes
        self.stride = int(backbone.output_stride)  # type: ignore[arg-type]
        self.normalization = normalization
        self.align_corners = align_corners

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))

    def lattice_size(self, side: int) -> int:
        """The smallest side >= `side` on which scores and pixels align: stride * k + 1 (321, 513, 377, ...)."""
        return -(-(side - 1) // self.stride) * self.stride + 1 if side > 1 else 1

    def freeze_batch_norm(self) -> None:
        """Statistics and affine terms stay as loaded, also through later `.train()` calls, as in the papers' code."""
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
                module.train = lambda mode=True, _module=module: _module  # type: ignore[method-assign,misc]
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)


def resize_scores(scores: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    """Bilinear: B x C x h x w -> B x C x size."""
    if scores.shape[-2:] == torch.Size(size):
        return scores
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=align_corners)
