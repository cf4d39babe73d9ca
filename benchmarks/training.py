"""Training speed: the loop under Ray Train against the same loop alone, the share of a step spent waiting for data, and on a GPU
the share of the card's measured matrix rate that a step reaches.

    python benchmarks/training.py                             # the example photos, on CPUs
    python benchmarks/training.py --preset resnet101-v2 --batch-size 10 --loaders 8 --dataset DATASET    # on a GPU

Both run in turns in one process tree, `--repeats` times. Rates are of the steps after the first `--warm-up`: over all of them,
and over the fastest quarter, which other load on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

from deeplab import zoo
from deeplab.training.loop import Objective, TrainingProgress
from pipelines.cluster import connection
from pipelines.options import TrainOptions
from pipelines.train.ray_train import Notice, configuration, train

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "pets"


def run(options: TrainOptions, warm_up: int) -> tuple[float, float, float]:
    """Images per second over all steps and over the fastest quarter, and the share of time spent waiting for data."""
    steps: list[TrainingProgress] = []

    def watch(progress: TrainingProgress | Notice) -> None:
        if isinstance(progress, TrainingProgress):
            steps.append(progress)

    with tempfile.TemporaryDirectory() as folder:
        train(options.model_copy(update={"model_out": f"{folder}/model"}), watch)
    first, *later = steps[warm_up:]
    seconds = later[-1].at - first.at
    fastest = sorted(after.at - before.at for before, after in itertools.pairwise([first, *later]))[: max(1, len(later) // 4)]
    batch = configuration(options).batch_size
    return batch * len(later) / seconds, batch / statistics.mean(fastest), sum(step.waited for step in later) / seconds


def step_flop(options: TrainOptions, device: str) -> float:
    """Floating-point operations of one step's forward and backward pass, counted by torch (a multiply-add is two)."""
    from torch.utils.flop_counter import FlopCounterMode

    config = configuration(options)
    network = zoo.build(config.architecture, 21, **config.options).to(device)
    network.freeze_batch_norm()
    images = torch.zeros(1, 3, config.crop, config.crop, dtype=torch.uint8, device=device)
    labels = torch.zeros(1, config.crop, config.crop, dtype=torch.uint8, device=device)
    with FlopCounterMode(display=False) as counter:
        Objective(network.train(), config)(images, labels, None, 1.0).backward()
    return float(counter.get_total_flops()) * config.batch_size


def matrix_rate(size: int = 8192, repeats: int = 50) -> float:
    """Operations per second of a bfloat16 matrix product on the GPU."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(10):
        a @ b
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        a @ b
    torch.cuda.synchronize()
    return repeats * 2 * size**3 / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default=str(EXAMPLES))
    parser.add_argument("--preset", default="finetune")
    parser.add_argument("--init", default="pets")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--warm-up", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--crop", type=int, default=161)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--loaders", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    gpu = torch.cuda.is_available()
    torch.set_num_threads(1)  # Ray gives its workers one thread a CPU
    options = TrainOptions(
        dataset=args.dataset, model_out="", preset=args.preset, init=args.init, steps=args.steps, batch_size=args.batch_size,
        crop=args.crop, precision=args.precision, loaders=args.loaders, validate_every=args.steps, skip_broken=True,
    )  # fmt: skip
    where = torch.cuda.get_device_name() if gpu else platform.machine()
    print(f"{where}: {args.preset}, batch {args.batch_size}, crop {args.crop}, {args.precision}, ", end="")
    print(f"{'default' if args.loaders is None else args.loaders} loaders")
    ratios, quiet, waits, rates = [], [], [], []
    with connection.session(cpus=1):
        for repeat in range(args.repeats):
            alone, alone_quiet, waited = run(options, args.warm_up)
            # With an address, even that of the Ray already running here, one worker goes through Ray Train.
            wrapped, wrapped_quiet, waited_there = run(options.model_copy(update={"address": "auto"}), args.warm_up)
            ratios.append(wrapped / alone)
            quiet.append(wrapped_quiet / alone_quiet)
            waits.append(waited_there)
            rates.append(wrapped)
            print(f"{repeat}: alone {alone:.2f} images/s (fastest quarter {alone_quiet:.2f}), {waited:.1%} waiting; ", end="")
            print(f"with Ray {wrapped:.2f} ({wrapped_quiet:.2f}), {waited_there:.1%}", flush=True)
    print(f"with Ray / alone, median of {args.repeats}: {statistics.median(ratios):.3f}, ", end="")
    print(f"fastest quarter {statistics.median(quiet):.3f}; waiting for data {statistics.median(waits):.1%}")
    if gpu:
        rate, peak = statistics.median(rates) / args.batch_size * step_flop(options, "cuda"), matrix_rate()
        print(f"{rate / 1e12:.1f} of {peak / 1e12:.1f} TFLOP/s measured in bfloat16: {rate / peak:.1%}")


if __name__ == "__main__":
    main()
