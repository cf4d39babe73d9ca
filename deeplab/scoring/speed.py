"""How fast a model is on a machine: seconds an image by stage, use of the device's arithmetic, and hours for an archive."""

from __future__ import annotations

import io
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from deeplab import masks
from deeplab.crf import DenseCRF
from deeplab.images.decoding import decode
from deeplab.models.checkpoint import Model
from deeplab.networks.network import SegmentationNetwork
from deeplab.placement import Placement
from deeplab.scoring.batch_norm_folding import folded
from deeplab.scoring.model_predictor import Passes, passes, predictor_of
from deeplab.scoring.multiscale import multiscale_scores, winning_classes
from deeplab.scoring.row_bands import CRF_MARGIN
from deeplab.scoring.settings import PLAIN, Scoring

T = TypeVar("T")


@dataclass(frozen=True)
class Speed:
    """Median seconds an image: decode, refine and encode on one core, score on the device.

    `flops`: multiplications and additions for one image's scores; `peak`: those per second of a large matrix product in
    the same precision, on one core or the GPU. `refine_device`: the CRF in torch operations on the GPU.
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
        """The share of `peak` that scoring reaches. Above 1 is possible: taps of a dilation that fall on padding cost nothing."""
        return self.flops / self.seconds["score"] / self.peak


@dataclass(frozen=True)
class Estimate:
    """Time and cost of a number of images on `cores` and `gpus`; `bound`: the stage that limits the rate."""

    images: int
    cores: int
    gpus: int
    images_per_second: float
    hours: float
    bound: str
    cost: float | None = None
    rates: dict[str, float] = field(default_factory=dict)


def pictures(count: int, height: int, width: int) -> list[bytes]:
    """JPEGs of `height` x `width` with smooth backgrounds, a few shapes and grain, as demanding as photos."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    encoded = []
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
        encoded.append(buffer.getvalue())
    return encoded


def flops_of(network: SegmentationNetwork, height: int, width: int, scales: Sequence[float], flip: bool) -> float:
    """Multiplications plus additions of one image's convolutions and matrix products, over all scales."""
    twin = folded(network).to("meta")
    x = torch.empty(1, 3, network.padded_size(height), network.padded_size(width), device="meta")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        multiscale_scores(twin, x, scales, flip, "max")
    return float(counter.get_total_flops())


def _flops(scored: Passes, scoring: Scoring) -> float:
    return scored.times * flops_of(scored.network, scored.height, scored.width, scoring.scales, scoring.flip)


def peak_of(device: torch.device, dtype: torch.dtype, rounds: int = 7) -> float:
    """Multiplications plus additions per second of a large matrix product: the best of `rounds`, after a warm-up."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch._int_mm if dtype == torch.int8 else F.linear
    best = float("inf")
    for _ in range(rounds + 1):
        best = min(best, _timed(lambda: product(left, right), device)[0])
    return 2.0 * side**3 / best


def measure(
    model: Model,
    encoded: Sequence[bytes],
    *,
    scoring: Scoring = PLAIN,
    device: str = "auto",
    crf: DenseCRF | None = None,
    crf_on_device: DenseCRF | None = None,
    rounds: int = 3,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Speed:
    """Take `encoded` photos through every stage `rounds` times, after a warm-up. ImageError for bytes that are no image.

    On a CPU everything runs in one thread whose CPU time is measured, so that other work on the machine matters little.
    `watch` is called with the number of the round and of all rounds.
    """
    if not encoded:
        raise ValueError("no photos: at least one is needed")
    predictor = predictor_of(model, scoring, device=device)
    cpu = torch.device("cpu")
    if predictor.device.type == "cpu":
        torch.set_num_threads(1)

    def labels(engine: DenseCRF | None, pixels: np.ndarray, scores: np.ndarray, placement: Placement) -> np.ndarray:
        if engine is None:
            return winning_classes(scores, pixels.shape[0], pixels.shape[1], placement)
        return engine.labels(pixels, scores, placement=placement)

    def run_stages() -> tuple[list[np.ndarray], dict[str, float]]:
        """Take all photos through every stage; returns their pixels and the seconds of each stage."""
        seconds: dict[str, float] = defaultdict(float)

        def timed(stage: str, work: Callable[[], T], where: torch.device = cpu) -> T:
            spent, result = _timed(work, where)
            seconds[stage] += spent
            return result

        def refined(pixels: np.ndarray, scores: np.ndarray, placement: Placement) -> np.ndarray:
            if crf_on_device is not None:
                timed("refine_device", lambda: labels(crf_on_device, pixels, scores, placement), predictor.device)
            return timed("refine", lambda: labels(crf, pixels, scores, placement))

        def in_bands(image: np.ndarray) -> np.ndarray:
            """The label map of an image whose scores are never whole in memory; scoring is all but the refining."""
            before = sum(seconds.values())
            spent, bands = _timed(lambda: list(predictor.label_bands(image, refined, CRF_MARGIN)), predictor.device)
            seconds["score"] += spent - (sum(seconds.values()) - before)
            return np.concatenate(bands)

        images = timed("decode", lambda: [decode(data) for data in encoded])
        label_maps = [in_bands(image) for image in images if predictor.in_windows(*image.shape[:2])]
        small = [image for image in images if not predictor.in_windows(*image.shape[:2])]
        for group in [[image] for image in small] if predictor.stride == 1 else [small]:
            scores = timed("score", lambda group=group: predictor.scores(group), predictor.device)  # type: ignore[misc]
            for image, maps in zip(group, scores, strict=True):
                label_maps.append(refined(image, maps, predictor.placement(maps, *image.shape[:2])))
        timed("encode", lambda: [masks.encode_png(label_map, model.classes) for label_map in label_maps])
        return images, seconds

    images, _ = run_stages()  # compiles kernels and allocates buffers
    by_stage: dict[str, list[float]] = {}
    for number in range(rounds):
        watch(number + 1, rounds + 1)
        for stage, seconds in run_stages()[1].items():
            by_stage.setdefault(stage, []).append(seconds / len(encoded))
    watch(rounds + 1, rounds + 1)
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    flops = {size: sum(_flops(scored, scoring) for scored in passes(model, *size)) for size in set(sizes)}
    medians = {stage: statistics.median(values) for stage, values in by_stage.items()}
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
    """Time and cost of `images` like those measured, without the time to read them and to start workers.

    Without GPUs each core takes an image through all stages; with GPUs these score while the cores do the rest.
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
    """Seconds of `work` and its result: CPU time of this thread, or wall-clock time until a GPU is done."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    clock = time.perf_counter if cuda else time.thread_time
    start = clock()
    result = work()
    if cuda:
        torch.cuda.synchronize(device)
    return clock() - start, result
