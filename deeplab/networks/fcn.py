"""FCN-32s, 16s and 8s (Long, Shelhamer, Darrell; prototxts of shelhamer/fcn.berkeleyvision.org)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from deeplab.networks.network import Normalization, SegmentationNetwork, scaled_channels
from deeplab.networks.vgg import VGG16, FullyConnected

# Where each crop starts: the offset that padding conv1_1 by 100 puts before a map's first pixel.
CROP_POOL4, CROP_POOL3 = 5, 9
CROP_IMAGE = {32: 19, 16: 27, 8: 31}
AT_ONCE = {"pool4": 0.01, "pool3": 0.0001}  # the skips' scales in `voc-fcn8s-atonce`; 1 in the staged nets


def bilinear_kernel(side: int) -> torch.Tensor:
    """`surgery.upsample_filt`: the side x side kernel that makes a transposed convolution interpolate bilinearly."""
    factor = (side + 1) // 2
    centre = factor - 1 if side % 2 else factor - 0.5
    line = 1 - (torch.arange(side, dtype=torch.float64) - centre).abs() / factor
    return torch.outer(line, line).float()


class FCNBackbone(VGG16):
    """VGG-16 with pad 100, 2/2 pools and unpadded fc6 (7x7), fc7: B x 3 x H x W -> pool3, pool4, fc7."""

    def __init__(self, ceil_pool: bool = True, width: float = 1.0) -> None:
        super().__init__(32, ceil_pool, first_padding=100, width=width)
        filters = max(1, round(4096 * width))
        self.fc = FullyConnected(self.channels, filters, 7, 1, padding=0)
        self.channels = filters

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pools = self.pools(x)
        return pools[2], pools[3], self.fc(pools[4])


class FCNHead(nn.Module):
    """score_fr, the skips' scores, and the transposed convolutions between and after them.

    `inputs`: channels of pool3, pool4 and fc7. Scores start at zero; transposed convolutions start as bilinear
    interpolation and stay it unless `learn_upscore`.
    """

    def __init__(self, inputs: Sequence[int], classes: int, stride: int, at_once: bool, learn_upscore: bool) -> None:
        super().__init__()
        self.stride = stride
        self.scales = AT_ONCE if at_once else {"pool4": 1.0, "pool3": 1.0}
        self.score_fr = nn.Conv2d(inputs[2], classes, 1)
        self.upscores = nn.ModuleList()
        self.score_pool4 = nn.Conv2d(inputs[1], classes, 1) if stride <= 16 else None
        self.score_pool3 = nn.Conv2d(inputs[0], classes, 1) if stride <= 8 else None
        for factor in {32: (32,), 16: (2, 16), 8: (2, 2, 8)}[stride]:
            up = nn.ConvTranspose2d(classes, classes, 2 * factor, factor, bias=False)
            with torch.no_grad():
                up.weight.zero_()
                up.weight[range(classes), range(classes)] = bilinear_kernel(2 * factor).to(up.weight.device)
            up.weight.requires_grad_(learn_upscore)
            self.upscores.append(up)
        for score in (self.score_fr, self.score_pool4, self.score_pool3):
            if score is not None:
                for parameter in score.parameters():
                    nn.init.zeros_(parameter)

    def forward(self, features: tuple[torch.Tensor, ...], size: tuple[int, int]) -> torch.Tensor:
        """(pool3, pool4, fc7) and the image's (H, W) -> B x C x H x W."""
        pool3, pool4, fc7 = features
        scores = self.score_fr(fc7)
        skips = ((self.score_pool4, pool4, "pool4", CROP_POOL4), (self.score_pool3, pool3, "pool3", CROP_POOL3))
        for (score, pool, name, offset), up in zip(skips, self.upscores[:-1], strict=False):
            assert score is not None
            scores = up(scores)
            skip = score(pool * self.scales[name])
            scores = scores + skip[..., offset : offset + scores.shape[-2], offset : offset + scores.shape[-1]]
        scores, start = self.upscores[-1](scores), CROP_IMAGE[self.stride]
        cropped: torch.Tensor = scores[..., start : start + size[0], start : start + size[1]]
        return cropped


class FCN(SegmentationNetwork):
    """An FCN: normalised B x 3 x H x W of any size in, B x C x H x W scores out."""

    def __init__(
        self,
        classes: int,
        stride: int,
        normalization: Normalization,
        at_once: bool = False,
        learn_upscore: bool = False,
        ceil_pool: bool = True,
        width: float = 1.0,
    ) -> None:
        backbone = FCNBackbone(ceil_pool, width)
        inputs = backbone.widths[2], backbone.widths[3], backbone.channels
        head = FCNHead(inputs, classes, stride, at_once, learn_upscore)
        super().__init__(backbone, head, classes, normalization, stride=1)

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        scores: torch.Tensor = self.head(scaled_channels(self.backbone(x), keep), (x.shape[-2], x.shape[-1]))
        return scores

    def load_stage(self, coarser: FCN) -> None:
        """Staged training: copy all layers of the next coarser net; the new skip's score starts at 0, as in `solve.py`."""
        own, theirs = self.state_dict(), coarser.state_dict()
        shared = {key: value for key, value in theirs.items() if key in own and not key.startswith("head.upscores")}
        self.load_state_dict({**own, **shared})
