"""A segmentation network: a dilated backbone, a head, and the geometry that both were built for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from deeplab.placement import Geometry


@dataclass(frozen=True)
class Normalization:
    """How RGB pixels (0..255) become a backbone's input: channel order, then (x - mean) / std per input channel."""

    order: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def apply(self, pixels: torch.Tensor) -> torch.Tensor:
        """B x 3 x H x W, RGB, 0..255, any dtype -> float32 of the same shape, normalised."""
        pixels = pixels.to(torch.float32, copy=True)  # the only one: new memory costs more than the arithmetic
        if self.order == "BGR":
            pixels = pixels.flip(1)
        mean = torch.tensor(self.mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, 3, 1, 1)
        return pixels.sub_(mean).div_(std)

    def undo(self, values: torch.Tensor) -> torch.Tensor:
        """Normalised B x 3 x H x W -> float32 pixels, 0..255, RGB."""
        mean = torch.tensor(self.mean, device=values.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=values.device).view(1, 3, 1, 1)
        pixels = values * std + mean
        return pixels.flip(1) if self.order == "BGR" else pixels

    @property
    def mean_rgb(self) -> tuple[float, float, float]:
        """The colour (RGB, 0..255) that normalises to zero, with which images are padded."""
        return self.mean if self.order == "RGB" else (self.mean[2], self.mean[1], self.mean[0])

    @property
    def std_rgb(self) -> tuple[float, float, float]:
        """What the values of R, G and B are divided by."""
        return self.std if self.order == "RGB" else (self.std[2], self.std[1], self.std[0])


# Caffe's ImageNet mean, in B, G, R (the VGG and MSRA ResNet weights), also as DeepLab's own prototxts round it;
# MobileNetV2 as Google trained it.
CAFFE = Normalization("BGR", (103.939, 116.779, 123.68), (1.0, 1.0, 1.0))
DEEPLAB = Normalization("BGR", (104.008, 116.669, 122.675), (1.0, 1.0, 1.0))
FCN_MEAN = Normalization("BGR", (104.00699, 116.66877, 122.67892), (1.0, 1.0, 1.0))
TENSORFLOW = Normalization("RGB", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
# Google's DeepLab v3 on phones: the input's 8-bit code, x / 128 - 1.
MOBILE = Normalization("RGB", (128.0, 128.0, 128.0), (128.0, 128.0, 128.0))
# torchvision's: mean (0.485, 0.456, 0.406) and deviation (0.229, 0.224, 0.225) of pixels in 0..1.
TORCHVISION = Normalization("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@dataclass(frozen=True)
class Quantization:
    """What int8 needs beside the weights: codes of the layers' results, and biases without the mean error that codes bring.

    A result is scale * (code - zero), code 0 to 255; one scale (float32) and zero (uint8) for each convolution whose result is
    codes, in order. bias: float32, of all convolutions one after the other. `deeplab.scoring.int8.calibration` finds them.
    """

    scale: np.ndarray
    zero: np.ndarray
    bias: np.ndarray

    def __post_init__(self) -> None:
        for name, dtype in (("scale", np.float32), ("zero", np.uint8), ("bias", np.float32)):
            values = getattr(self, name)
            if values.dtype != dtype or values.ndim != 1 or not np.isfinite(values).all():
                raise ValueError(f"quantization: {name} is not a vector of finite {np.dtype(dtype)}")
        if len(self.scale) != len(self.zero) or not (self.scale > 0).all():
            raise ValueError("quantization: a positive scale and a zero are needed for each result")


class ParameterGroup(TypedDict):
    """A group of parameters as torch's optimizers take them; `base_lr` is the learning rate before any schedule."""

    params: list[nn.Parameter]
    lr: float
    base_lr: float
    weight_decay: float


class SegmentationNetwork(nn.Module):
    """backbone -> head: normalised B x 3 x H x W in, class scores (logits) B x C x h x w out.

    `normalization`: the input that the weights expect. `geometry`: how images are padded and scaled for them and where scores
    lie; with sides of `stride * k + 1` (the lattice) score i lies exactly on pixel `stride * i`. `stride`: of the scores; by
    default the backbone's `output_stride`. `trained_stride`: the stride that the weights were trained at, if it is coarser; the
    grids that such weights score independently are then mixed (`mixed_grids`). `quantization`: what int8 needs beside these
    weights, if it is known.
    """

    learnt_norm = False  # True where the paper trains batch norm, too

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        classes: int,
        normalization: Normalization,
        align_corners: bool = True,
        stride: int | None = None,
        trained_stride: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.classes = classes
        self.stride = stride or int(backbone.output_stride)  # type: ignore[arg-type]
        self.grids = max(1, (trained_stride or self.stride) // self.stride)
        self.normalization = normalization
        self.geometry = Geometry(align_corners=align_corners)
        self.quantization: Quantization | None = None

    @property
    def align_corners(self) -> bool:
        """Whether scores and pixels are aligned at their corners, or areas: how training upsamples scores to labels."""
        return self.geometry.align_corners

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """`keep`: B x D factors of the backbone's channels, with which training drops some of them."""
        scores: torch.Tensor = self.head(scaled_channels(self.backbone(x), keep))
        return mixed_grids(scores, self.grids)

    def parameter_groups(self, rate: float, head_multiplier: float, weight_decay: float) -> list[ParameterGroup]:
        """The learnt parameters by learning rate: weights x 1, biases x 2 without decay, the head's x m and x 2m (`lr_mult`).

        The head holds the newly learnt layers: fc8 in the VGG nets, whose fc6 and fc7 belong to the backbone. Frozen
        parameters and empty groups are left out.
        """
        groups: list[ParameterGroup] = []
        for module, multiplier in ((self.backbone, 1.0), (self.head, head_multiplier)):
            named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
            weights = [p for name, p in named if not name.endswith("bias")]
            biases = [p for name, p in named if name.endswith("bias")]
            for factor, decay, parameters in ((multiplier, weight_decay, weights), (2 * multiplier, 0.0, biases)):
                if parameters:
                    lr = rate * factor
                    groups.append({"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay})
        return groups

    def lattice_size(self, side: int) -> int:
        """The smallest side >= `side` on which scores and pixels align: stride * k + 1 (321, 513, 377, ...)."""
        return -(-(side - 1) // self.stride) * self.stride + 1 if side > 1 else 1

    def padded_size(self, side: int) -> int:
        """The side that an image of `side` pixels has when it is scored."""
        geometry = self.geometry
        return self.lattice_size(max(side, geometry.least_side)) if geometry.padded else side

    def grid(self, height: int, width: int, like: torch.Tensor) -> tuple[int, int]:
        """Rows and columns of the scores of an image of that size. like: a tensor of the device and dtype that the network takes.

        If images are not padded, a small pass through the network tells: `stride` more pixels are one more score, whatever the
        rounding of each layer.
        """
        stride = self.stride
        if self.geometry.padded:
            return (self.lattice_size(height) - 1) // stride + 1, (self.lattice_size(width) - 1) // stride + 1
        rest = [min(side, side % stride + 2 * stride) for side in (height, width)]
        with torch.inference_mode():
            rows, columns = self(like.new_zeros(1, 3, *rest)).shape[-2:]
        return rows + (height - rest[0]) // stride, columns + (width - rest[1]) // stride

    def freeze_batch_norm(self, affine: bool = True) -> None:
        """Keep statistics and affine terms as loaded, even after later `.train()` calls, as in the papers' code.

        Without `affine` only the statistics are kept: scale and shift are learnt like a convolution's weight and bias.
        """
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
                module.train = lambda mode=True, _module=module: _module  # type: ignore[method-assign,misc]
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(not affine)


def scaled_channels(features: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """B x D x h x w features times B x D factors (None: unchanged). ValueError for a backbone with several feature maps."""
    if keep is None:
        return features
    if not isinstance(features, torch.Tensor):
        raise ValueError("dropout: backbones with one feature map are accepted, this has several")
    return features * keep[:, :, None, None].to(features.dtype)


def mixed_grids(scores: torch.Tensor, grids: int) -> torch.Tensor:
    """B x C x h x w scores, averaged so that each position weighs the `grids` x `grids` interleaved grids equally.

    Weights trained at stride 16 score at stride 8 with holes twice as wide, so that no layer connects a position with its
    neighbours: four grids, which disagree as a checkerboard where the network is unsure. The weights 1, 2, 1 over 4 (for two
    grids; a triangle in general) along both sides have the same sum over every grid. Border scores are repeated outside.
    """
    if grids == 1:
        return scores
    channels, box = scores.shape[1], torch.ones(1, 1, grids, dtype=torch.float32, device=scores.device) / grids
    weights = F.conv1d(box, box, padding=grids - 1).flatten()
    reach = grids - 1
    padded = F.pad(scores.float(), (reach, reach, reach, reach), mode="replicate")
    across = F.conv2d(padded, weights.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)
    return F.conv2d(across, weights.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels).to(scores.dtype)


def resize_scores(scores: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    """Bilinear: B x C x h x w -> B x C x size."""
    if scores.shape[-2:] == torch.Size(size):
        return scores
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=align_corners)
