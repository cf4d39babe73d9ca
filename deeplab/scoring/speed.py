"""What a model costs on a machine: seconds an image by stage, arithmetic against the device's own, and what an archive takes."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from deeplab import masks
from deeplab.classes import ClassTable
from deeplab.crf import DenseCRF
from deeplab.images.decoding import decode
from deeplab.networks.network import SegmentationNetwork
from deeplab.scoring.batch_norm_folding import folded
from deeplab.scoring.multiscale import multiscale_scores
from deeplab.scoring.predictor import PLAIN, Predictor, Scoring

T = TypeVar("T")


@dataclass(frozen=True)
class Speed:
    """Medians in seconds an image: decode, score, refine, encode, on one core each, but for `score` on the device.

    `flops`: multiplications and additions that one image's scores take; `peak`: those of a large matrix product in the
    same arithmetic, per second, on one core or the GPU. `refine_device`: the CRF in torch operations on the GPU.
    """

    device: str
    precision: str
    images: int
    pixels: float
    seconds: dict[str, float]
    flops: float
    peak: float
    refine_device: float | None = None

    @property
    def utilisation(self) -> float:
        """Share of the device's arithmetic that scoring reaches. It can pass 1: holes that reach into padding cost nothing."""
        return self.flops / self.seconds["score"] / self.peak


@dataclass(frozen=True)
class Estimate:
    """What a number of images takes on `cores` and `gpus`; `bound`: the stage that the others wait for."""

    images: int
    cores: int
    gpus: int
    images_per_second: float
    hours: float
    bound: str
    cost: float | None = None
    rates: dict[str, float] = field(default_factory=dict)


def pictures(count: int, height: int, width: int) -> list[bytes]:
    """JPEGs of `height` x `width` with smooth grounds, a few shapes and grain: what a CRF and a decoder find in photos."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    found = []
    for _ in range(count):
        slope = random.uniform(-0.3, 0.3, (2, 3))
        picture = (
            random.uniform(60, 180, 3) + rows[..., None] * slope[0] * 256 / height + columns[..., None] * slope[1] * 256 / width
        )
        for _ in range(4):
            y, x, a, b = random.uniform(0, height), random.uniform(0, width), *random.uniform(0.08, 0.3, 2) * min(height, width)
            picture[((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < 1] = random.uniform(0, 255, 3)
        picture += random.normal(0, 6, picture.shape)
        buffer = io.BytesIO()
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def flops_of(network: SegmentationNetwork, height: int, width: int, scales: Sequence[float], flip: bool) -> float:
    """Multiplications and additions (each counts) of one image's convolutions and products over all scales."""
    twin = folded(network).to("meta")
    x = torch.empty(1, 3, network.lattice_size(height), network.lattice_size(width), device="meta")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        multiscale_scores(twin, x, scales, flip, "max")
    return float(counter.get_total_flops())


def peak_of(device: torch.device, dtype: torch.dtype, rounds: int = 7) -> float:
    """Multiplications and additions per second of a large matrix product: the best of `rounds`, after one to warm up."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(rounds + 1):
        best = min(best, _timed(lambda: F.linear(left, right), device)[0])
    return 2.0 * side**3 / best


def measure(
    network: SegmentationNetwork,
    classes: ClassTable,
    encoded: Sequence[bytes],
    *,
    scoring: Scoring = PLAIN,
    device: str = "auto",
    crf: DenseCRF | None = None,
    crf_on_device: DenseCRF | None = None,
    rounds: int = 3,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Speed:
    """Take `encoded` photos through every stage `rounds` times, after one to warm up. ImageError for what is no image.

    On a CPU everything runs in one thread and its CPU time counts, so that other work on the machine disturbs little.
    `watch` hears of rounds done and of all.
    """
    if not encoded:
        raise ValueError("no photos: at least one is needed")
    predictor = Predictor(network, scoring, device=device)
    cpu = torch.device("cpu")
    if predictor.device.type == "cpu":
        torch.set_num_threads(1)
    geometry: dict[str, Any] = {"stride": network.stride, "align_corners": network.align_corners}

    def through() -> tuple[list[np.ndarray], dict[str, float]]:
        """All photos through every stage: their pixels, and the seconds of each stage."""
        took = {}
        took["decode"], images = _timed(lambda: [decode(data) for data in encoded], cpu)
        took["score"], scores = _timed(lambda: predictor.scores(images), predictor.device)

        def labels(engine: DenseCRF | None) -> list[np.ndarray]:
            if engine is None:
                return [predictor.labels_of(found, *image.shape[:2]) for image, found in zip(images, scores, strict=True)]
            return [engine.labels(image, scores=found, **geometry) for image, found in zip(images, scores, strict=True)]

        took["refine"], found = _timed(lambda: labels(crf), cpu)
        if crf_on_device is not None:
            took["refine_device"], _ = _timed(lambda: labels(crf_on_device), predictor.device)
        took["encode"], _ = _timed(lambda: [masks.encode_png(each, classes) for each in found], cpu)
        return images, took

    images, _ = through()  # makes kernels and buffers
    spent: dict[str, list[float]] = {}
    for number in range(rounds):
        watch(number + 1, rounds + 1)
        for stage, seconds in through()[1].items():
            spent.setdefault(stage, []).append(seconds / len(encoded))
    watch(rounds + 1, rounds + 1)
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    flops = {size: flops_of(network, *size, scoring.scales, scoring.flip) for size in set(sizes)}
    medians = {stage: statistics.median(values) for stage, values in spent.items()}
    on_device = medians.pop("refine_device", None)
    return Speed(
        device=torch.cuda.get_device_name(predictor.device) if predictor.device.type == "cuda" else "one core",
        precision=predictor.precision,
        images=len(encoded),
        pixels=sum(h * w for h, w in sizes) / len(sizes),
        seconds=medians,
        flops=sum(flops[size] for size in sizes) / len(sizes),
        peak=peak_of(predictor.device, predictor.dtype),
        refine_device=on_device,
    )


def estimate(speed: Speed, images: int, cores: int, gpus: int = 0, hourly_price: float | None = None) -> Estimate:
    """What `images` like those measured take, without what it takes to read them and to start the workers.

    Without GPUs a core takes an image all its way; with them the GPUs score while the cores do the rest.
    """
    seconds = speed.seconds
    if gpus:
        rest = seconds["decode"] + seconds["refine"] + seconds["encode"]
        rates = {"score": gpus / seconds["score"], "decode, refine and encode": cores / rest}
    else:
        rates = {stage: cores / value for stage, value in seconds.items()}
    rate = min(rates.values()) if gpus else cores / sum(seconds.values())
    hours = images / rate / 3600
    cost = None if hourly_price is None else hours * hourly_price
    return Estimate(images, cores, gpus, rate, hours, min(rates, key=lambda stage: rates[stage]), cost, rates)


def _timed(work: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Seconds of `work` and what it gives: of this thread on a CPU, on the wall until a GPU is done."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    clock = time.perf_counter if cuda else time.thread_time
    start = clock()
    found = work()
    if cuda:
        torch.cuda.synchronize(device)
    return clock() - start, found
