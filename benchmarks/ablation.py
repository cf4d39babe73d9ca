"""The papers' learning policies at a hundredth of their iterations, on a CPU: the figures of docs/results.md.

    python benchmarks/ablation.py --dataset ../shared/data/pets --init ../shared/weights/resnet50_imagenet_caffe.safetensors

Rows of arXiv 1606.00915's Table 2 (learning policy, batch, iterations) with LargeFOV on ResNet-50, each a training from ImageNet
weights and an evaluation of its last weights, before and after the CRF. Each finished row is appended to --out; rows that are there
already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from deeplab import weights, zoo
from deeplab.classes import ClassTable
from deeplab.crf import DenseCRF
from deeplab.data.datasets import LabelledFolder
from deeplab.evaluation.predictions import evaluate
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.settings import Scoring
from deeplab.training.loop import Execution, train
from deeplab.training.presets import TrainingConfig

# ResNet-50 at stride 16 in place of the papers' VGG-16 and ResNet-101 at stride 8; batch and iterations scaled down.
BASE = TrainingConfig(
    preset="ablation", architecture="resnet50-largefov", options={"output_stride": 16, "eps": 1e-3}, steps=200, batch_size=4,
    crop=161, scales=(1.0,), loss="stride", precision="bfloat16", validate_every=100_000,
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """`paper`: the row's mIoU there, before the CRF, in percent."""

    name: str
    config: TrainingConfig
    paper: float


def policy(schedule: Literal["poly", "step"], batch: int, steps: int, paper: float) -> Row:
    config = replace(BASE, schedule=schedule, batch_size=batch, steps=steps, step_every=max(1, steps // 3))
    return Row(f"{schedule}, batch {batch}, {steps} iterations", config, paper)


ROWS = (
    policy("step", 12, 60, 62.25),
    policy("poly", 12, 60, 63.42),
    policy("poly", 12, 100, 64.90),
    policy("poly", 4, 100, 64.71),
    policy("poly", 4, 200, 65.88),
)


def cpu_seconds() -> float:
    return sum(part.ru_utime + part.ru_stime for part in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def sample(data: LabelledFolder, every: int) -> LabelledFolder:
    kept = set(data.stems[::every])
    return data.without([stem for stem in data.stems if stem not in kept])


def measure(row: Row, dataset: Path, init: Path, every: int) -> dict[str, Any]:
    """Train and evaluate one row; figures of every `every`-th image of `test`, at the last iteration."""
    began = cpu_seconds()
    training, validation, test = (LabelledFolder(dataset, split) for split in ("train", "val", "test"))
    network = zoo.build(row.config.architecture, len(training.classes), seed=0, **row.config.options)
    weights.initialise(network, init, training.classes)
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        train(
            network, row.config, training, sample(validation, 30), Path(folder) / "model", card={"name": "ablation"},
            classes=ClassTable.from_names(training.classes), execution=Execution("cpu", loaders=0),
            report=lambda progress: losses.append(progress.loss),
        )  # fmt: skip
    trained = cpu_seconds() - began
    test = sample(test, every)
    predictor = Predictor(network, Scoring(precision="bfloat16"), device="cpu")
    evaluation = evaluate(predictor, test, crf=DenseCRF.named("deeplab-v2"))
    assert evaluation.before is not None
    return {
        "name": row.name, "images": len(test), "loss": sum(losses[-20:]) / len(losses[-20:]),
        "before": evaluation.before.total.mean_iou(), "after": evaluation.total.mean_iou(), "train_cpu_seconds": round(trained),
        "cpu_seconds": round(cpu_seconds() - began),
    }  # fmt: skip


def markdown(done: dict[str, dict[str, Any]]) -> str:
    """The table, with the paper's figures beside ours."""
    lines = ["| | loss | mIoU | with CRF | the paper's | CPU seconds |", "|---|---|---|---|---|---|"]
    for row in ROWS:
        if figures := done.get(row.name):
            ours = f"{figures['loss']:.3f} | {100 * figures['before']:.2f} | {100 * figures['after']:.2f}"
            lines.append(f"| {row.name} | {ours} | {row.paper:.2f} | {figures['train_cpu_seconds']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=Path("../shared/data/pets"))
    parser.add_argument("--init", type=Path, default=Path("../shared/weights/resnet50_imagenet_caffe.safetensors"))
    parser.add_argument("--out", type=Path, default=Path("build/ablation.jsonl"))
    parser.add_argument("--every", type=int, default=3, help="evaluate every n-th test image")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    done = {figures["name"]: figures for figures in map(json.loads, lines)}
    for row in ROWS:
        if row.name not in done:
            done[row.name] = measure(row, arguments.dataset, arguments.init, arguments.every)
            with arguments.out.open("a") as stream:
                stream.write(json.dumps(done[row.name]) + "\n")
            print(json.dumps(done[row.name]), flush=True)
    print(markdown(done))


if __name__ == "__main__":
    main()
