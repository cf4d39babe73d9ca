"""Images to scores: equal shapes share a batch, large images are cut into tiles, scales are fused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from deeplab.convolutions import onednn
from deeplab.devices import best_precision, device_named
from deeplab.networks.network import SegmentationNetwork
from deeplab.placement import Placement
from deeplab.scoring.batch_norm_folding import folded
from deeplab.scoring.int8.choice import cpu_network
from deeplab.scoring.multiscale import multiscale_scores, upsample, winning_classes
from deeplab.scoring.row_bands import Label, RowSource, label_rows, label_windows
from deeplab.scoring.settings import PLAIN, Scoring

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


def check_images(images: Sequence[np.ndarray]) -> None:
    """ValueError for anything but H x W x 3 uint8."""
    for image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(f"image of shape {image.shape}, {image.dtype}: H x W x 3 uint8 RGB is accepted")


class Predictor:
    """Scores and label maps for lists of images of mixed sizes.

    Every image is padded (bottom and right, with the backbone's mean colour) to the next size on the network's lattice, or
    scored at its own size, as the network's geometry says. It is never resized and never padded to a neighbour's size, so its
    result does not depend on the other images of its batch.
    Images with more than `tile` x `tile` pixels are scored in overlapping tiles whose scores are blended linearly over the
    overlap, so memory is bounded by the tile.

    device: "auto" is the GPU if there is one, for int8 the CPU. The network is copied, with batch norm folded and weights in the
    precision; sums inside a layer and between scales stay float32. On a CPU, MobileNetV2 networks in bfloat16 and int8 are
    computed by this package's own kernels, where the processor has the instructions (`deeplab.scoring.native`), and other
    networks in int8 through oneDNN (`deeplab.scoring.int8`).
    batch_pixels: the most padded pixels of one pass at scale 1, although a single image may have more. On a CPU it is
    small, so that features between two layers stay in the cache.
    score_dtype: of the scores, float16 as they are stored and sent, or float32 for a caller that computes with them.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        scoring: Scoring = PLAIN,
        *,
        device: str = "auto",
        batch_pixels: int | None = None,
        score_dtype: torch.dtype = torch.float16,
    ) -> None:
        self.device = device_named("cpu" if scoring.precision == "int8" and device == "auto" else device)
        self.precision = best_precision(self.device) if scoring.precision == "auto" else scoring.precision
        self.dtype = DTYPES[self.precision]
        own = cpu_network(network, self.precision, self.device)
        self.takes_pixels = own is not None
        self.network: SegmentationNetwork = own or self._in_torch(network)
        self.scales, self.flip, self.fusion = scoring.scales, scoring.flip, scoring.fusion
        self.tile = network.lattice_size(max(scoring.tile, network.geometry.least_side))
        self.overlap = -(-scoring.overlap // network.stride) * network.stride
        self.batch_pixels = batch_pixels or (16_000_000 if self.device.type == "cuda" else 120_000)
        self.padding = np.round(network.normalization.mean_rgb).astype(np.uint8)
        self.score_dtype = score_dtype

    @property
    def stride(self) -> int:
        """Pixels from score to score."""
        return self.network.stride

    def _in_torch(self, network: SegmentationNetwork) -> SegmentationNetwork:
        """A copy on the device in the precision."""
        # Depthwise and pointwise convolutions run fastest with channels innermost.
        twin: SegmentationNetwork = folded(network).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        twin = twin.to(self.dtype)
        if onednn.available(twin):
            onednn.fuse(twin)
        return twin

    def scores(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """H x W x 3 uint8 RGB images -> class scores, C x h x w each in `score_dtype`.

        `placement` says where they lie: on the lattice h = ceil((H - 1) / stride) + 1, and score (i, j) is on pixel
        (stride * i, stride * j). Raises ValueError for another shape or dtype.
        """
        check_images(images)
        results: list[np.ndarray | None] = [None] * len(images)
        buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            height, width = image.shape[:2]
            if height * width > self.tile * self.tile:
                results[index] = np.concatenate(list(self.score_rows(image)), axis=1)
            else:
                buckets[self.network.padded_size(height), self.network.padded_size(width)].append(index)
        # All batches are queued before the first scores are fetched: a GPU works while the next batch is assembled.
        pending: list[tuple[list[int], torch.Tensor]] = []
        for (height, width), indices in buckets.items():
            size = max(1, self.batch_pixels // (height * width))
            for start in range(0, len(indices), size):
                batch = indices[start : start + size]
                pending.append((batch, self._batch([images[i] for i in batch])))
        for batch, batch_scores in pending:
            for index, scores in zip(batch, batch_scores.cpu().numpy(), strict=True):
                # A least side gives scores beyond the image, too.
                rows, columns = self.grid(*images[index].shape[:2]) if self.network.geometry.padded else scores.shape[1:]
                results[index] = scores[:, :rows, :columns]
        return [scores for scores in results if scores is not None]

    def score_rows(self, image: np.ndarray | RowSource) -> Iterator[np.ndarray]:
        """Score one image in tiles, from top to bottom: C x k x w parts that make up C x h x w.

        Slices image[top:bottom] are taken from top to bottom, each as high as a tile. A part is returned once no further
        tile overlaps it, so memory is bounded by a row of tiles.
        """
        stride = self.network.stride
        height, width = image.shape[:2]
        rows, columns = self._starts(height), self._starts(width)
        grid = self.grid(height, width)
        total, weight = np.zeros((self.network.classes, 0, grid[1]), np.float32), np.zeros((0, grid[1]), np.float32)
        for top, following in zip(rows, [*rows[1:], grid[0] * stride], strict=True):
            band = image[top : top + self.tile]
            for left in columns:
                scores = self._batch([band[:, left : left + self.tile]])[0].float().cpu().numpy()
                if more := scores.shape[1] - len(weight):  # below the rows that overlap the last tiles
                    total, weight = np.pad(total, ((0, 0), (0, more), (0, 0))), np.pad(weight, ((0, more), (0, 0)))
                j = left // stride
                w = min(scores.shape[2], grid[1] - j)
                ramp = np.outer(self._ramp(scores.shape[1]), self._ramp(scores.shape[2]))[:, :w]
                total[:, :, j : j + w] += ramp * scores[:, :, :w]
                weight[:, j : j + w] += ramp
            done = (following - top) // stride
            part: np.ndarray = total[:, :done] / weight[:done]
            yield part.astype(np.float16) if self.score_dtype == torch.float16 else part
            total, weight = total[:, done:], weight[done:]

    def labels(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """H x W x 3 uint8 RGB images -> label maps, H x W uint8 (uint16 above 256 classes)."""
        scores = self.scores(images)
        return [self.labels_of(s, *image.shape[:2]) for s, image in zip(scores, images, strict=True)]

    def labels_of(self, scores: np.ndarray, height: int, width: int) -> np.ndarray:
        """Scores of an image -> the class of each pixel, height x width."""
        return winning_classes(scores, height, width, self.placement(scores, height, width))

    def upsampled(self, scores: np.ndarray, height: int, width: int) -> np.ndarray:
        """Scores of an image -> C x height x width float32."""
        return upsample(scores, height, width, self.placement(scores, height, width))

    def placement(self, scores: np.ndarray, height: int, width: int) -> Placement:
        """Where scores C x h x w of an image of height x width lie on its pixels."""
        return self.network.geometry.scores(scores.shape[1:], (height, width), self.stride)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the scores of an image."""
        dtype = torch.float32 if self.takes_pixels else self.dtype
        return self.network.grid(height, width, torch.empty(0, dtype=dtype, device=self.device))

    def in_windows(self, height: int, width: int) -> bool:
        """Whether an image is too large for the scores of all of it to be in memory: `label_bands` labels it."""
        return self.stride == 1 and height * width > self.tile * self.tile

    def label_bands(
        self, image: np.ndarray | RowSource, label: Label, margin: int, watch: Callable[[np.ndarray], None] = lambda part: None
    ) -> Iterator[np.ndarray]:
        """The label map of an image of any size, k x W bands from top to bottom; memory is bounded by the tile.

        label: labels of pixels from their scores, best with `margin` pixels around those that count. watch: called with parts
        of the scores that make up those of the image.
        """
        if self.stride == 1:
            return label_windows(image, self, label, max(margin, self.overlap // 2), watch)

        def watched() -> Iterator[np.ndarray]:
            for part in self.score_rows(image):
                watch(part)
                yield part

        size = image.shape[:2]
        placement = self.network.geometry.scores(self.grid(*size), size, self.stride)
        return label_rows(image, watched(), placement, label, self.tile - 1, margin)

    def _batch(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Images that are scored at one size -> their scores, `score_dtype` on the device; one pass per scale."""
        sizes = [image.shape[:2] for image in images]
        height, width = (self.network.padded_size(side) for side in sizes[0])
        pixels = np.empty((len(images), height, width, 3), np.uint8)
        pixels[:] = self.padding
        for slot, image in zip(pixels, images, strict=True):
            slot[: image.shape[0], : image.shape[1]] = image
        with torch.inference_mode():
            x = torch.from_numpy(pixels)
            if self.device.type == "cuda":  # copies from pinned memory overlap with the GPU's work
                x = x.pin_memory().to(self.device, non_blocking=True)
            x = x.permute(0, 3, 1, 2)
            if not self.takes_pixels:
                x = self.network.normalization.apply(x).to(self.dtype)
            elif self.scales != (1.0,) or self.network.geometry.exact_mean:  # whole numbers cannot say it
                x = self.network.normalization.apply(x)
            if self.network.geometry.exact_mean:
                for slot, (bottom, right) in zip(x, sizes, strict=True):
                    slot[:, bottom:], slot[:, :, right:] = 0, 0
            scores = multiscale_scores(self.network, x, self.scales, self.flip, self.fusion)
            # Scores beyond half precision's range decide alike.
            return scores.clamp(-65504, 65504).half() if self.score_dtype == torch.float16 else scores

    def _starts(self, side: int) -> list[int]:
        """First pixels (multiples of the stride) of the tiles along one side, each of self.tile pixels or up to the image's end."""
        if side <= self.tile:
            return [0]
        count = -(-(side - self.overlap) // (self.tile - self.overlap))
        last = -(-(side - self.tile) // self.network.stride)
        return [round(last * k / (count - 1)) * self.network.stride for k in range(count)]

    def _ramp(self, length: int) -> np.ndarray:
        """Weight of each score of a tile: 1 inside, falling linearly over the overlap towards both ends, never 0."""
        edge = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1.0
        return np.minimum(1.0, edge / (self.overlap // self.network.stride + 1))
