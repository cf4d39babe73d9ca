"""The networks a second time, from the papers' layer tables and Caffe's arithmetic; nothing here comes from deeplab/.

Weights are looked up by Caffe's layer names in a dict of (weight, bias). Pooling is written out with windows, transposed
convolution kernel by kernel, batch norm with its formula, interpolation with numpy.interp.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

Layer = tuple[torch.Tensor, torch.Tensor | None]
Weights = dict[str, Layer]

SIZES = [(320, 320), (321, 321), (375, 500), (512, 512), (513, 513)]

# layer, kernel, stride, pad, hole: prototxt `vgg128_noup` (facts, section 1).
LARGEFOV_BODY = [
    ("conv1_1", 3, 1, 1, 1), ("conv1_2", 3, 1, 1, 1), ("pool1", 3, 2, 1, 1),
    ("conv2_1", 3, 1, 1, 1), ("conv2_2", 3, 1, 1, 1), ("pool2", 3, 2, 1, 1),
    ("conv3_1", 3, 1, 1, 1), ("conv3_2", 3, 1, 1, 1), ("conv3_3", 3, 1, 1, 1), ("pool3", 3, 2, 1, 1),
    ("conv4_1", 3, 1, 1, 1), ("conv4_2", 3, 1, 1, 1), ("conv4_3", 3, 1, 1, 1), ("pool4", 3, 1, 1, 1),
    ("conv5_1", 3, 1, 2, 2), ("conv5_2", 3, 1, 2, 2), ("conv5_3", 3, 1, 2, 2), ("pool5", 3, 1, 1, 1),
]  # fmt: skip
FCN_BODY = [
    ("conv1_1", 3, 1, 100, 1), ("conv1_2", 3, 1, 1, 1), ("pool1", 2, 2, 0, 1),
    ("conv2_1", 3, 1, 1, 1), ("conv2_2", 3, 1, 1, 1), ("pool2", 2, 2, 0, 1),
    ("conv3_1", 3, 1, 1, 1), ("conv3_2", 3, 1, 1, 1), ("conv3_3", 3, 1, 1, 1), ("pool3", 2, 2, 0, 1),
    ("conv4_1", 3, 1, 1, 1), ("conv4_2", 3, 1, 1, 1), ("conv4_3", 3, 1, 1, 1), ("pool4", 2, 2, 0, 1),
    ("conv5_1", 3, 1, 1, 1), ("conv5_2", 3, 1, 1, 1), ("conv5_3", 3, 1, 1, 1), ("pool5", 2, 2, 0, 1),
]  # fmt: skip


def pooled_side(side: int, kernel: int, stride: int, pad: int) -> int:
    """Caffe: ceil((n + 2p - k) / s) + 1, less one where the last window would start in the far padding."""
    out = -(-(side + 2 * pad - kernel) // stride) + 1
    return out - 1 if pad and (out - 1) * stride >= side + pad else out


def windows(x: torch.Tensor, kernel: int, stride: int, pad: int, fill: float) -> torch.Tensor:
    """... x h x w x kernel x kernel: what each output of a Caffe pooling sees."""
    rows, columns = (pooled_side(n, kernel, stride, pad) for n in x.shape[-2:])
    bottom, right = (rows - 1) * stride + kernel - x.shape[-2] - pad, (columns - 1) * stride + kernel - x.shape[-1] - pad
    canvas = F.pad(x, (pad, max(0, right), pad, max(0, bottom)), value=fill)
    return canvas.unfold(2, kernel, stride).unfold(3, kernel, stride)[:, :, :rows, :columns]


def max_pool(x: torch.Tensor, kernel: int, stride: int, pad: int) -> torch.Tensor:
    return windows(x, kernel, stride, pad, float("-inf")).amax((-1, -2))


def conv(x: torch.Tensor, layer: Layer, stride: int = 1, pad: int = 0, hole: int = 1) -> torch.Tensor:
    return F.conv2d(x, layer[0], layer[1], stride, pad, hole)


def body(x: torch.Tensor, w: Weights, table: list[tuple[str, int, int, int, int]]) -> dict[str, torch.Tensor]:
    """The output of every layer of a VGG body, by name."""
    found = {}
    for name, kernel, stride, pad, hole in table:
        x = max_pool(x, kernel, stride, pad) if name.startswith("pool") else conv(x, w[name], stride, pad, hole).relu()
        found[name] = x
    return found


def pool5a(x: torch.Tensor) -> torch.Tensor:
    """3x3 average, stride 1, pad 1: Caffe divides by nine at the border, too."""
    return windows(x, 3, 1, 1, 0.0).sum((-1, -2)) / 9


def branch(x: torch.Tensor, w: Weights, kernel: int, hole: int, suffix: str = "") -> torch.Tensor:
    """fc6 - fc7 - fc8; the pad keeps the size: (kernel - 1) * hole / 2."""
    fc6 = conv(x, w["fc6" + suffix], 1, (kernel - 1) * hole // 2, hole).relu()
    return conv(conv(fc6, w["fc7" + suffix]).relu(), w["fc8" + suffix])


def feature_branches(x: torch.Tensor, found: dict[str, torch.Tensor], w: Weights) -> torch.Tensor:
    """v1's MSc: the sum of the branches' scores, on pool5's grid."""
    rows, columns = found["pool5"].shape[-2:]
    total = torch.zeros(())
    for tap, maps, stride in (("data", x, 8), ("pool1", found["pool1"], 4), ("pool2", found["pool2"], 2),
                              ("pool3", found["pool3"], 1), ("pool4", found["pool4"], 1)):  # fmt: skip
        sides = [max(n, (m - 1) * stride + 1) for n, m in zip(maps.shape[-2:], (rows, columns), strict=True)]
        canvas = maps.new_zeros(*maps.shape[:2], *sides)
        canvas[:, :, : maps.shape[2], : maps.shape[3]] = maps
        y = conv(canvas, w[f"{tap}_1"], stride, 1).relu()
        total = total + conv(conv(y, w[f"{tap}_2"]).relu(), w[f"{tap}_3"])
    return total


def norm(x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    view = (1, -1, 1, 1)
    return (x - mean.view(view)) / (var.view(view) + 1e-5).sqrt() * scale.view(view) + shift.view(view)


def resnet_v2(x: torch.Tensor, conv_norm, blocks: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Caffe's dilated ResNet of DeepLab v2. `conv_norm(x, caffe layer, stride, pad, hole)` is a convolution with BN and Scale."""
    x = max_pool(conv_norm(x, "conv1", 2, 3, 1).relu(), 3, 2, 1)
    found = {"pool1": x}
    for stage, (count, stride, hole) in enumerate(zip(blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True), 2):
        for block in range(count):
            name, first = f"{stage}.{block}", stride if block == 0 else 1
            shortcut = conv_norm(x, f"{name}_branch1", first, 0, 1) if block == 0 else x
            y = conv_norm(x, f"{name}_branch2a", first, 0, 1).relu()
            y = conv_norm(y, f"{name}_branch2b", 1, hole, hole).relu()
            x = (shortcut + conv_norm(y, f"{name}_branch2c", 1, 0, 1)).relu()
        found[f"res{stage}"] = x
    return found


def transposed(x: torch.Tensor, weight: torch.Tensor, stride: int, pad: int = 0, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Caffe's Deconvolution: every input adds its kernel at `stride` times its place (weight in x out x k x k)."""
    batch, _, height, width = x.shape
    side = weight.shape[-1]
    out = x.new_zeros(batch, weight.shape[1], (height - 1) * stride + side, (width - 1) * stride + side)
    for i in range(side):
        for j in range(side):
            if weight[:, :, i, j].any():
                tap = torch.einsum("bchw,co->bohw", x, weight[:, :, i, j])
                out[:, :, i : i + height * stride : stride, j : j + width * stride : stride] += tap
    out = out[:, :, pad : out.shape[2] - pad, pad : out.shape[3] - pad]
    return out if bias is None else out + bias.view(1, -1, 1, 1)


def bilinear(side: int) -> torch.Tensor:
    """`surgery.upsample_filt`, element by element."""
    factor = (side + 1) // 2
    centre = factor - 1.0 if side % 2 else factor - 0.5
    kernel = [[(1 - abs(i - centre) / factor) * (1 - abs(j - centre) / factor) for j in range(side)] for i in range(side)]
    return torch.tensor(kernel, dtype=torch.float32)


class Place:
    """Where a map's element i lies in the image: start + step * i (Caffe's coord_map)."""

    def __init__(self, step: float = 1, start: float = 0) -> None:
        self.step, self.start = step, start

    def conv(self, kernel: int, stride: int, pad: int) -> Place:
        return Place(self.step * stride, self.start + self.step * ((kernel - 1) / 2 - pad))

    def deconv(self, kernel: int, stride: int) -> Place:
        step = self.step / stride
        return Place(step, self.start - step * (kernel - 1) / 2)

    def offset_to(self, other: Place) -> int:
        """The index in this map that lies on element 0 of `other`, which has the same step."""
        assert self.step == other.step
        index = (other.start - self.start) / self.step
        assert index == int(index)
        return int(index)


def fcn_places() -> dict[str, Place]:
    """Every layer's place, from the table alone."""
    place, found = Place(), {}
    for name, kernel, stride, pad, _ in FCN_BODY:
        place = found[name] = place.conv(kernel, stride, pad)
    found["fc7"] = place.conv(7, 1, 0)
    return found


def fcn(x: torch.Tensor, w: Weights, stride: int, scales: tuple[float, float]) -> torch.Tensor:
    """FCN-32s, 16s, 8s with fixed bilinear deconvolutions and crops from the places; scales of pool4 and pool3."""
    found, places = body(x, w, FCN_BODY), fcn_places()
    scores = conv(conv(conv(found["pool5"], w["fc6"]).relu(), w["fc7"]).relu(), w["score_fr"])
    place = places["fc7"]
    steps = {32: [], 16: [("pool4", scales[0])], 8: [("pool4", scales[0]), ("pool3", scales[1])]}[stride]
    eye = torch.eye(scores.shape[1])[:, :, None, None]
    for name, scale in steps:
        scores, place = transposed(scores, eye * bilinear(4), 2), place.deconv(4, 2)
        offset = places[name].offset_to(place)
        skip = conv(found[name] * scale, w[f"score_{name}"])
        scores = scores + skip[:, :, offset : offset + scores.shape[2], offset : offset + scores.shape[3]]
    scores, place = transposed(scores, eye * bilinear(2 * stride), stride), place.deconv(2 * stride, stride)
    start = place.offset_to(Place())
    return scores[:, :, start : start + x.shape[2], start : start + x.shape[3]]


def interpolated(maps: torch.Tensor, rows: int, columns: int, step: float) -> torch.Tensor:
    """B x C x h x w read at (i * step, j * step), linearly, the ends repeated."""
    values = maps.double().numpy()
    for axis, count in ((2, rows), (3, columns)):
        at, grid = np.arange(count) * step, np.arange(values.shape[axis])
        values = np.apply_along_axis(lambda line, at=at, grid=grid: np.interp(at, grid, line), axis, values)
    return torch.from_numpy(values).float()
