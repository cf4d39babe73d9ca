"""Images to scores: equal shapes share a batch, large images are cut into tiles, scales are fused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import torch

from deeplab.convolutions import onednn
from deeplab.devices import best_precision, device_named
from deeplab.images.decoding import LEAST_STRIDE
from deeplab.networks.network import SegmentationNetwork
from deeplab.scoring.batch_norm_folding import folded
from deeplab.scoring.multiscale import Fusion, multiscale_scores, winning_classes
from deeplab.scoring.native.engine import NativeNetwork, native_network

Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


@dataclass(frozen=True)
class Scoring:
    """How a network is applied to an image. ValueError for values out of range."""

    scales: tuple[float, ...] = (1.0,)
    """Factors of the input, each above 0 and at most 4."""
    flip: bool = False
    """Also score the mirror image, and average."""
    fusion: Fusion = "max"
    """How the scores of several scales become one: "max" as in DeepLab v2, or "mean"."""
    precision: Precision = "auto"
    """Of the arithmetic. "auto" is float16 on a GPU, and `deeplab.devices.best_precision` on a CPU. "int8" is for CPUs and
    MobileNetV2 networks with a quantization."""
    tile: int = 1025
    """Pixels: an image of more than `tile` x `tile` is scored in tiles of that side."""
    overlap: int = 128
    """Pixels that neighbouring tiles share."""

    def __post_init__(self) -> None:
        if not self.scales or any(not 0 < scale <= 4 for scale in self.scales):
            raise ValueError(f"scales {self.scales}: one or more factors above 0 and at most 4 are accepted")
        if self.fusion not in get_args(Fusion):
            raise ValueError(f"fusion {self.fusion!r}: 'max' and 'mean' are accepted")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision {self.precision!r}: 'auto', 'float32', 'bfloat16', 'float16' and 'int8' are accepted")
        if not 0 <= self.overlap <= self.tile - LEAST_STRIDE:
            raise ValueError(
                f"tile {self.tile}, overlap {self.overlap}: the tile must exceed the overlap by at least {LEAST_STRIDE} pixels"
            )


PLAIN = Scoring()


class RowSource(Protocol):
    """An H x W x 3 uint8 RGB image that is read by slices of rows, such as deeplab.images.row_windows.LargeImage."""

    shape: tuple[int, int, int]

    def __getitem__(self, rows: slice) -> np.ndarray: ...


class Predictor:
    """Scores and label maps for lists of images of mixed sizes.

    Every image is padded (bottom and right, with the backbone's mean colour) to the next size on the network's lattice,
    never resized and never padded to a neighbour's size, so its result does not depend on the other images of its batch.
    Images with more than `tile` x `tile` pixels are scored in overlapping tiles whose scores are blended linearly over the
    overlap, so memory is bounded by the tile.

    device: "auto" is the GPU if there is one, for int8 the CPU. The network is copied, with batch norm folded and weights in the
    precision; sums inside a layer and between scales stay float32. On a CPU, MobileNetV2 networks in bfloat16 and int8 are
    computed by this package's own kernels, where the processor has the instructions (`deeplab.scoring.native`).
    batch_pixels: the most padded pixels of one pass at scale 1, although a single image may have more. On a CPU it is
    small, so that features between two layers stay in the cache.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        scoring: Scoring = PLAIN,
        *,
        device: str = "auto",
        batch_pixels: int | None = None,
    ) -> None:
        self.device = device_named("cpu" if scoring.precision == "int8" and device == "auto" else device)
        self.precision = best_precision(self.device) if scoring.precision == "auto" else scoring.precision
        self.dtype = DTYPES[self.precision]
        native = native_network(network, self.precision, self.device)
        self.network: SegmentationNetwork = native or self._in_torch(network)
        self.scales, self.flip, self.fusion = scoring.scales, scoring.flip, scoring.fusion
        self.tile = network.lattice_size(scoring.tile)
        self.overlap = -(-scoring.overlap // network.stride) * network.stride
        self.batch_pixels = batch_pixels or (16_000_000 if self.device.type == "cuda" else 120_000)
        self.padding = np.round(network.normalization.mean_rgb).astype(np.uint8)

    def _in_torch(self, network: SegmentationNetwork) -> SegmentationNetwork:
        """A copy on the device in the precision."""
        # Depthwise and pointwise convolutions run fastest with channels innermost.
        twin: SegmentationNetwork = folded(network).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        twin = twin.to(self.dtype)
        if onednn.available(twin):
            onednn.fuse(twin)
        return twin

    def scores(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """H x W x 3 uint8 RGB images -> class scores, float16 C x h x w each, h = ceil((H - 1) / stride) + 1.

        Score (i, j) lies on pixel (stride * i, stride * j). Raises ValueError for another shape or dtype.
        """
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
                raise ValueError(f"image of shape {image.shape}, {image.dtype}: H x W x 3 uint8 RGB is accepted")
        results: list[np.ndarray | None] = [None] * len(images)
        buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            height, width = image.shape[:2]
            if height * width > self.tile * self.tile:
                results[index] = np.concatenate(list(self.score_rows(image)), axis=1)
            else:
                buckets[self.network.lattice_size(height), self.network.lattice_size(width)].append(index)
        # All batches are queued before the first scores are fetched: a GPU works while the next batch is assembled.
        pending: list[tuple[list[int], torch.Tensor]] = []
        for (height, width), indices in buckets.items():
            size = max(1, self.batch_pixels // (height * width))
            for start in range(0, len(indices), size):
                batch = indices[start : start + size]
                pending.append((batch, self._batch([images[i] for i in batch], height, width)))
        for batch, batch_scores in pending:
            for index, scores in zip(batch, batch_scores.cpu().numpy(), strict=True):
                results[index] = scores
        return [scores for scores in results if scores is not None]

    def score_rows(self, image: np.ndarray | RowSource) -> Iterator[np.ndarray]:
        """Score one image in tiles, from top to bottom: float16 C x k x w parts that make up C x h x w.

        Slices image[top:bottom] are taken from top to bottom, each as high as a tile. A part is returned once no further
        tile overlaps it, so memory is bounded by a row of tiles.
        """
        stride = self.network.stride
        height, width = image.shape[:2]
        rows, tile_height = self._starts(height)
        columns, tile_width = self._starts(width)
        grid = (self.network.lattice_size(height) - 1) // stride + 1, (self.network.lattice_size(width) - 1) // stride + 1
        total = np.zeros((self.network.classes, (tile_height - 1) // stride + 1, grid[1]), np.float32)
        weight = np.zeros(total.shape[1:], np.float32)
        for top, following in zip(rows, [*rows[1:], grid[0] * stride], strict=True):
            band = image[top : top + tile_height]
            for left in columns:
                scores = self._batch([band[:, left : left + tile_width]], tile_height, tile_width)[0].float().cpu().numpy()
                j = left // stride
                w = min(scores.shape[2], grid[1] - j)
                ramp = np.outer(self._ramp(scores.shape[1]), self._ramp(scores.shape[2]))[:, :w]
                total[:, :, j : j + w] += ramp * scores[:, :, :w]
                weight[:, j : j + w] += ramp
            done = (following - top) // stride
            yield (total[:, :done] / weight[:done]).astype(np.float16)
            # The rows that the next tiles overlap move to the top.
            total = np.concatenate([total[:, done:], np.zeros_like(total[:, :done])], axis=1)
            weight = np.concatenate([weight[done:], np.zeros_like(weight[:done])])

    def labels(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """H x W x 3 uint8 RGB images -> label maps, H x W uint8 (uint16 above 256 classes)."""
        scores = self.scores(images)
        return [self.labels_of(s, *image.shape[:2]) for s, image in zip(scores, images, strict=True)]

    def labels_of(self, scores: np.ndarray, height: int, width: int) -> np.ndarray:
        """Scores at stride -> the class of each pixel, height x width."""
        return winning_classes(scores, height, width, self.network.stride, self.network.align_corners)

    def _batch(self, images: Sequence[np.ndarray], height: int, width: int) -> torch.Tensor:
        """Images that fit height x width (on the lattice) -> their scores, float16 on the device; one pass per scale."""
        pixels = np.empty((len(images), height, width, 3), np.uint8)
        pixels[:] = self.padding
        for slot, image in zip(pixels, images, strict=True):
            slot[: image.shape[0], : image.shape[1]] = image
        with torch.inference_mode():
            x = torch.from_numpy(pixels)
            if self.device.type == "cuda":  # copies from pinned memory overlap with the GPU's work
                x = x.pin_memory().to(self.device, non_blocking=True)
            x = x.permute(0, 3, 1, 2)
            if not isinstance(self.network, NativeNetwork):
                x = self.network.normalization.apply(x).to(self.dtype)
            elif self.scales != (1.0,):  # a scaled photo is none of whole numbers
                x = self.network.normalization.apply(x)
            scores = multiscale_scores(self.network, x, self.scales, self.flip, self.fusion)
            # Scores beyond half precision's range decide alike.
            return scores.clamp(-65504, 65504).half()

    def _starts(self, side: int) -> tuple[list[int], int]:
        """First pixels (multiples of the stride) of the tiles along one side, and the tiles' length on the lattice."""
        if side <= self.tile:
            return [0], self.network.lattice_size(side)
        count = -(-(side - self.overlap) // (self.tile - self.overlap))
        last = -(-(side - self.tile) // self.network.stride)
        return [round(last * k / (count - 1)) * self.network.stride for k in range(count)], self.tile

    def _ramp(self, length: int) -> np.ndarray:
        """Weight of each score of a tile: 1 inside, falling linearly over the overlap towards both ends, never 0."""
        edge = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1.0
        return np.minimum(1.0, edge / (self.overlap // self.network.stride + 1))
