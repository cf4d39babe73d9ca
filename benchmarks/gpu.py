"""The papers' network on a GPU: images/s, share of its arithmetic, CRF, and a profile.

    python benchmarks/gpu.py [--device cuda] [--architecture resnet101-aspp] [--sizes 375x500,513x513] [--count 64]

Needs only `deeplab/`, not Ray. Synthetic photos of each size go through every stage of `deeplab.scoring.speed`; weights are
random, which does not change the time. At the end comes a profile of scoring: the operations that take longest.
"""

from __future__ import annotations

import argparse

import torch
from torch.profiler import ProfilerActivity, profile

from deeplab import zoo
from deeplab.classes import ClassTable
from deeplab.crf import DenseCRF
from deeplab.images.decoding import decode
from deeplab.models.checkpoint import Model
from deeplab.scoring import speed
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.settings import Scoring


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--architecture", default="resnet101-aspp")
    parser.add_argument("--sizes", default="375x500,513x513")
    parser.add_argument("--scales", type=lambda text: tuple(map(float, text.split(","))), default=(0.5, 0.75, 1.0))
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=15, help="operations of the profile")
    arguments = parser.parse_args(words)
    network = zoo.build(arguments.architecture, 21, seed=0).eval()
    model = Model(arguments.architecture, network, ClassTable.from_names([f"class {index}" for index in range(21)]), {}, "")
    scales, cuda = arguments.scales, arguments.device == "cuda"
    native = DenseCRF.named("deeplab-v2")
    twin = DenseCRF.named("deeplab-v2", mode="exact", backend="torch", device="cuda") if cuda else None
    for size in arguments.sizes.split(","):
        encoded = speed.pictures(arguments.count, *map(int, size.split("x")))
        result = speed.measure(
            model,
            encoded,
            scoring=Scoring(scales=scales),
            device=arguments.device,
            crf=native,
            crf_on_device=twin,
            rounds=arguments.rounds,
        )
        seconds = result.seconds
        print(f"{arguments.architecture}, {size}, scales {scales}, {result.precision} on {result.device}, {arguments.count} photos")
        print(f"  score {1 / seconds['score']:.2f} images/s, {result.flops / 1e9:.0f} GFLOP an image, ", end="")
        print(f"{result.utilisation:.0%} of the {result.peak / 1e12:.2f} TFLOP/s of a matrix product")
        on_device = "" if result.refine_device is None else f", {1000 * result.refine_device:.1f} on the device (exact)"
        print(f"  ms an image: decode {1000 * seconds['decode']:.2f}, CRF {1000 * seconds['refine']:.1f} on one core{on_device}")
    predictor = Predictor(network, Scoring(scales=scales), device=arguments.device)
    images = [decode(data) for data in encoded]
    predictor.scores(images)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiled:
        predictor.scores(images)
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    print(profiled.key_averages().table(sort_by=order, row_limit=arguments.rows, max_name_column_width=60))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
