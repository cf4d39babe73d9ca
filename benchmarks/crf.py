"""The dense CRF engine against pydensecrf: time, agreement and memory, one core, interleaved in one process.

    python benchmarks/crf.py --photos FOLDER [--model MODEL] [--reference FOLDER] [--cases real,hard,...] [--rounds 3]

Times are CPU time of the calling thread, from each side's input to a label map: pydensecrf gets unary energies at full size,
computed beforehand; ours gets the float16 scores at stride 8 and interpolates them within its time.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import machine
from PIL import Image

from deeplab.crf import DenseCRF
from deeplab.crf.pydensecrf_backend import pydensecrf_module

PHOTOS = [  # all of 375 x 500 pixels, from the Oxford-IIIT Pet data set; chosen by name alone
    "Abyssinian_105.jpg", "Abyssinian_157.jpg", "Abyssinian_21.jpg", "Bengal_10.jpg", "Bengal_24.jpg",
    "Bengal_47.jpg", "Bengal_77.jpg", "american_bulldog_144.jpg", "american_bulldog_168.jpg", "american_bulldog_39.jpg",
]  # fmt: skip
BESIDE = Path(__file__).resolve().parents[2] / "shared"
STRIDE = 8
Source = Callable[[np.ndarray, int], np.ndarray]


def smooth_noise(rng: np.random.Generator, height: int, width: int, sigma: float) -> np.ndarray:
    """White noise smoothed by a Gaussian of `sigma` grid steps, of unit deviation."""
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    low_pass = np.exp(-((y**2 + x**2) * (2 * np.pi * sigma) ** 2) / 2)
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * low_pass, s=(height, width))
    return np.asarray(noise / noise.std())


def synthetic(classes: int, contested: int) -> Source:
    """Scores in which `contested` classes compete: a colour cluster's preference plus smooth noise, as a network's would."""

    def scores(image: np.ndarray, index: int) -> np.ndarray:
        rng = np.random.default_rng(1000 * classes + index)
        height, width = (image.shape[0] - 1) // STRIDE + 1, (image.shape[1] - 1) // STRIDE + 1
        small = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX), np.float32)
        centres = small.reshape(-1, 3)[rng.choice(height * width, contested, replace=False)]
        distance = ((small[None] - centres[:, None, None]) ** 2).sum(-1) ** 0.5
        values = np.full((classes, height, width), -150.0)
        for c in range(contested):
            values[c] = -distance[c] / 3 + 5 * smooth_noise(rng, height, width, 2.5)
        for c in range(contested, classes):
            values[c] += smooth_noise(rng, height, width, 3)
        return values.astype(np.float16)

    return scores


def from_model(reference: str) -> Source:
    """A model of this project; its classes have ids 0, 8, 12, ... among 21; the others score far below."""
    from deeplab.models.checkpoint import load
    from deeplab.scoring.predictor import Predictor

    predictor = Predictor(load(reference).network, device="cpu")

    def scores(image: np.ndarray, index: int) -> np.ndarray:
        scores = predictor.scores([image])[0].astype(np.float32)
        if predictor.network.stride != STRIDE:
            scores = resampled(scores, image.shape, predictor.network.stride / STRIDE)
        placed = np.repeat(scores.min(0, keepdims=True) - 8, max(21, len(scores)), 0)
        ids = [0, 8, 12, *(c for c in range(len(placed)) if c not in (0, 8, 12))][: len(scores)]
        placed[ids] = scores
        return placed.astype(np.float16)

    return scores


def resampled(grid: np.ndarray, shape: tuple[int, ...], per_step: float) -> np.ndarray:
    """C x h x w on a grid `per_step` times coarser than stride 8 (corner on corner) -> the stride-8 grid of an image."""
    from deeplab.placement import Placement
    from deeplab.scoring.multiscale import upsample

    height, width = (shape[0] - 1) // STRIDE + 1, (shape[1] - 1) // STRIDE + 1
    return upsample(grid, height, width, Placement.stepping(grid.shape[1:], 1 / per_step))


def from_tflite(folder: Path) -> Source:
    """An 8-bit DeepLab v3 of PASCAL VOC (21 classes): its scores before the last interpolation, 33 x 33."""
    from ai_edge_litert.interpreter import Interpreter

    path = next(folder.glob("*.tflite"))
    net = Interpreter(model_path=str(path), num_threads=1, experimental_preserve_all_tensors=True)
    net.allocate_tensors()
    entry = net.get_input_details()[0]["index"]
    logits = next(t for t in net.get_tensor_details() if list(t["shape"][1:]) == [33, 33, 21])
    factor, zero = logits["quantization"]

    def scores(image: np.ndarray, index: int) -> np.ndarray:
        squeezed = Image.fromarray(image).resize((513, 513), Image.Resampling.BILINEAR)
        net.set_tensor(entry, np.asarray(squeezed)[None])
        net.invoke()
        grid = (net.get_tensor(logits["index"])[0].astype(np.float32) - zero) * factor
        height, width = (image.shape[0] - 1) // STRIDE + 1, (image.shape[1] - 1) // STRIDE + 1
        y = np.arange(height) * STRIDE * 32 / (image.shape[0] - 1)
        x = np.arange(width) * STRIDE * 32 / (image.shape[1] - 1)
        return bilinear(grid.transpose(2, 0, 1), y, x).astype(np.float16)

    return scores


def bilinear(grid: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """C x h x w read at rows y and columns x."""
    top, left = np.minimum(y.astype(int), grid.shape[1] - 2), np.minimum(x.astype(int), grid.shape[2] - 2)
    dy, dx = (y - top)[:, None], x - left
    rows = grid[:, top] * (1 - dy) + grid[:, top + 1] * dy
    return np.asarray(rows[:, :, left] * (1 - dx) + rows[:, :, left + 1] * dx)


def energies(image: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Unary energies at full size, C x N float32: -log softmax of the interpolated scores."""
    from deeplab.placement import Placement
    from deeplab.scoring.multiscale import upsample

    height, width = image.shape[:2]
    full = upsample(scores, height, width, Placement.stepping(scores.shape[1:], 1 / STRIDE)).astype(np.float32)
    full -= full.max(0)
    return np.ascontiguousarray((np.log(np.exp(full).sum(0)) - full).reshape(len(full), -1))


def peer(image: np.ndarray, energy: np.ndarray, crf: DenseCRF) -> np.ndarray:
    """pydensecrf's marginals, C x N."""
    module, p = pydensecrf_module(), crf.parameters
    height, width = image.shape[:2]
    d = module.DenseCRF2D(width, height, len(energy))
    d.setUnaryEnergy(energy)
    d.addPairwiseGaussian(sxy=p.pos_xy, compat=p.pos_w)
    d.addPairwiseBilateral(sxy=p.bi_xy, srgb=p.bi_rgb, rgbim=image, compat=p.bi_w)
    return np.array(d.inference(p.iterations))


def timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.thread_time()
    result = work()
    return (time.thread_time() - start) * 1e3, result


def run_case(name: str, source: Source, images: list[np.ndarray], rounds: int, full_size: bool) -> None:
    """One case over all photos; prints a row per photo and the medians."""
    exact, fast = DenseCRF("exact"), DenseCRF("fast")
    ratios: dict[str, list[float]] = {"exact": [], "fast": []}
    agreement: dict[str, list[float]] = {"exact": [], "fast": []}
    columns = "photo, pydensecrf ms, exact ms, x, fast ms, x, exact labels %, mean dQ; < 1e-3 %, fast labels %, kept, CRF moves %"
    print(f"\n## {name}\n\n| {columns.replace(',', ' |')} |\n|{'---|' * 11}")
    for index, image in enumerate(images):
        scores = source(image, index)
        energy = energies(image, scores)
        scores_and_stride = (-energy.reshape(-1, *image.shape[:2]), None) if full_size else (scores, STRIDE)
        times: dict[str, list[float]] = {"peer": [], "exact": [], "fast": []}
        for _ in range(rounds):
            spent, reference = timed(lambda: peer(image, energy, exact))  # noqa: B023
            start = time.thread_time()
            expected = reference.argmax(0).reshape(image.shape[:2])
            times["peer"].append(spent + (time.thread_time() - start) * 1e3)
            for mode, crf in (("exact", exact), ("fast", fast)):
                spent, labels = timed(lambda: crf.labels(image, scores_and_stride[0], stride=scores_and_stride[1]))  # noqa: B023
                times[mode].append(spent)
                if len(times[mode]) == rounds:
                    agreement[mode].append(100 * float((labels == expected).mean()))
        kept = fast.stats["classes_kept"]
        difference = np.abs(
            exact.marginals(image, scores_and_stride[0], stride=scores_and_stride[1]).reshape(len(energy), -1) - reference
        )
        medians = {key: statistics.median(values) for key, values in times.items()}
        for mode in ratios:
            ratios[mode].append(medians["peer"] / medians[mode])
        moved = 100 * float((energy.argmin(0) != reference.argmax(0)).mean())
        print(
            f"| {index} | {medians['peer']:.0f} | {medians['exact']:.0f} | {ratios['exact'][-1]:.1f} | {medians['fast']:.1f} "
            f"| {ratios['fast'][-1]:.1f} | {agreement['exact'][-1]:.4f} | {difference.mean():.1e}; "
            f"{100 * (difference < 1e-3).mean():.4f} | {agreement['fast'][-1]:.4f} | {kept} | {moved:.1f} |",
            flush=True,
        )
    for mode in ratios:
        print(
            f"\n{name} {mode}: median {statistics.median(ratios[mode]):.1f} x pydensecrf "
            f"(from {min(ratios[mode]):.1f} to {max(ratios[mode]):.1f}), labels at worst {min(agreement[mode]):.4f} %"
        )


def memory_case(backend: str) -> None:
    """Peak resident memory that one 1024 x 2048 x 19 refinement adds; run in its own process."""
    rng = np.random.default_rng(0)
    base = np.stack([smooth_noise(rng, 1024, 2048, s) for s in (30, 20, 25)], -1)
    image = np.clip(110 + 45 * base + rng.normal(0, 4, base.shape), 0, 255).astype(np.uint8)
    grid = (4 * np.stack([smooth_noise(rng, 128, 256, 4) for _ in range(19)])).astype(np.float16)
    crf = DenseCRF("fast" if backend == "fast" else "exact", iterations=2)  # memory does not grow with iterations
    if backend == "pydensecrf":
        energy = energies(image, grid)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.thread_time()
    if backend == "pydensecrf":
        peer(image, energy, crf).argmax(0)
    else:
        crf.labels(image, grid, stride=STRIDE)
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"1024x2048x19 {backend}: {added:.0f} MiB added at the peak, {time.thread_time() - start:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=BESIDE / "data" / "pets" / "images")
    parser.add_argument("--model", default="pets", help="model folder or bundled name for the case 'model'")
    parser.add_argument("--reference", type=Path, default=BESIDE / "reference", help="folder with a .tflite for 'reference'")
    parser.add_argument("--cases", default="reference,model,hard,c150,c2")
    parser.add_argument("--count", type=int, default=len(PHOTOS), help="how many of the photos")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full-size", action="store_true", help="give our engine float32 scores at the image's size too")
    parser.add_argument("--memory", choices=["pydensecrf", "exact", "fast", "all"], help="only: memory at 1024x2048x19")
    arguments = parser.parse_args()
    if arguments.memory == "all":
        for backend in ("pydensecrf", "exact", "fast"):
            subprocess.run([sys.executable, __file__, "--memory", backend], check=True)
        return
    if arguments.memory:
        memory_case(arguments.memory)
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import torch

    torch.set_num_threads(1)
    images = [np.array(Image.open(arguments.photos / name).convert("RGB")) for name in PHOTOS[: arguments.count]]
    print(f"{machine()}, one of them used, thread CPU time, {arguments.rounds} rounds interleaved; load {os.getloadavg()[0]:.1f}")
    sources: dict[str, Callable[[], Source]] = {
        "reference": lambda: from_tflite(arguments.reference),
        "model": lambda: from_model(arguments.model),
        "hard": lambda: synthetic(21, 13),
        "c150": lambda: synthetic(150, 16),
        "c2": lambda: synthetic(2, 2),
    }
    for name in arguments.cases.split(","):
        try:
            source = sources[name]()
        except (ImportError, StopIteration, ValueError) as error:
            print(f"\n## {name}: left out ({error!r})")
            continue
        run_case(name, source, images, arguments.rounds, arguments.full_size)


if __name__ == "__main__":
    main()
