"""The papers' ablations at a hundredth of their iterations, on a CPU: the figures of docs/results.md.

    python benchmarks/ablation.py --dataset ../shared/data/pets --init ../shared/weights/resnet50_imagenet_caffe.safetensors
    python benchmarks/ablation.py --network vgg16 --init ../shared/weights/vgg16_imagenet_convs.safetensors --out build/vgg.jsonl

Rows of arXiv 1606.00915's Table 2 (learning policy, batch, iterations) and Table 4 (MSC, scale augmentation, LargeFOV or
ASPP) on ResNet-50, or of Table 3 (LargeFOV, ASPP-S, ASPP-L) on VGG-16, each a training from ImageNet weights
and an evaluation of its last weights, before and after the CRF. Each finished row is appended to --out; rows that are there
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
from deeplab.scoring.predictor import Predictor, Scoring
from deeplab.training.loop import Execution, train
from deeplab.training.presets import TrainingConfig

# ResNet-50 at stride 16 in place of the papers' VGG-16 and ResNet-101 at stride 8; batch and iterations scaled down.
BASE = TrainingConfig(
    preset="ablation", architecture="resnet50-largefov", options={"output_stride": 16, "eps": 1e-3}, steps=200, batch_size=4,
    crop=161, scales=(1.0,), loss="stride", precision="bfloat16", validate_every=100_000,
)  # fmt: skip
VGG_STEPS = 150
AUGMENTED = (0.5, 0.75, 1.0, 1.25, 1.5)
MSC = (0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Row:
    """`paper`: the row's mIoU there, before and after the CRF, in percent; `scales`: of the evaluation."""

    table: int
    name: str
    config: TrainingConfig
    paper: tuple[float | None, float | None]
    scales: tuple[float, ...] = (1.0,)


def policy(schedule: str, batch: int, steps: int, paper: float, crf: float | None = None) -> Row:
    config = replace(BASE, schedule=schedule, batch_size=batch, steps=steps, step_every=max(1, steps // 3))  # type: ignore[arg-type]
    return Row(2, f"{schedule}, batch {batch}, {steps} iterations", config, (paper, crf))


def design(name: str, head: str, msc: bool, augmented: bool, paper: float | None, crf: float | None = None) -> Row:
    config = replace(BASE, architecture=f"resnet50-{head}")
    if msc:
        config = replace(config, objective="official")
    if msc and head != "plain":  # LargeFOV under a sum of four losses ends in NaN at the whole rate (step 32)
        config = replace(config, learning_rate=BASE.learning_rate / 4)
    return Row(4, name, replace(config, scales=AUGMENTED if augmented else (1.0,)), (paper, crf), MSC if msc else (1.0,))


def vgg(
    name: str,
    architecture: str,
    paper: float,
    crf: float | None = None,
    schedule: Literal["poly", "step"] = "poly",
    steps: int = VGG_STEPS,
) -> Row:
    config = replace(
        BASE, architecture=architecture, options={}, steps=steps, batch_size=6, schedule=schedule, step_every=steps // 3,
        learning_rate=1e-3,
    )  # fmt: skip
    return Row(3, name, config, (paper, crf))


# Table 3, and the learning policies of Table 2 with VGG-16 as in the paper; --init is vgg16_imagenet_convs.safetensors.
VGG_ROWS = (
    vgg("LargeFOV, step", "vgg16-v2-largefov", 62.25, schedule="step"),
    vgg("LargeFOV, poly", "vgg16-v2-largefov", 65.76, 69.84),
    vgg("ASPP-S, poly", "vgg16-aspp-s", 66.98, 69.73),
    vgg("ASPP-L, poly", "vgg16-aspp-l", 68.96, 71.57),
    vgg("ASPP-S, poly, longer", "vgg16-aspp-s", 66.98, 69.73, steps=2 * VGG_STEPS),
)
ROWS = (  # the most wanted first, should time run out
    policy("step", 12, 60, 62.25),
    policy("poly", 12, 60, 63.42),
    design("plain", "plain", False, False, 68.72),
    design("plain, MSC", "plain", True, False, 71.27),
    design("LargeFOV", "largefov", False, False, None),
    design("ASPP", "aspp", False, False, None),
    design("plain, MSC, Aug", "plain", True, True, None),
    design("LargeFOV, MSC, Aug", "largefov", True, True, 75.54),
    design("ASPP, MSC, Aug", "aspp", True, True, 76.35, 77.69),
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
    predictor = Predictor(network, Scoring(scales=row.scales, precision="bfloat16"), device="cpu")
    evaluation = evaluate(predictor, test, crf=DenseCRF.named("deeplab-v2"))
    assert evaluation.before is not None
    return {
        "table": row.table, "name": row.name, "images": len(test), "loss": sum(losses[-20:]) / len(losses[-20:]),
        "before": evaluation.before.total.mean_iou(), "after": evaluation.total.mean_iou(), "train_cpu_seconds": round(trained),
        "cpu_seconds": round(cpu_seconds() - began),
    }  # fmt: skip


def markdown(rows: tuple[Row, ...], done: dict[tuple[int, str], dict[str, Any]]) -> str:
    """The tables, with the paper's figures beside ours."""
    lines = []
    for table in sorted({row.table for row in rows}):
        lines += [
            f"\n| as Table {table} | steps | CPU seconds | loss | mIoU | with CRF | the paper's | with CRF |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            if row.table == table and (figures := done.get((table, row.name))):
                paper = " | ".join("" if value is None else f"{value:.2f}" for value in row.paper)
                ours = f"{100 * figures['before']:.2f} | {100 * figures['after']:.2f}"
                cost = f"{row.config.steps} | {figures['train_cpu_seconds']} | {figures['loss']:.3f}"
                lines.append(f"| {row.name} | {cost} | {ours} | {paper} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=Path("../shared/data/pets"))
    parser.add_argument("--init", type=Path, default=Path("../shared/weights/resnet50_imagenet_caffe.safetensors"))
    parser.add_argument("--network", choices=("resnet50", "vgg16"), default="resnet50", help="network whose rows are trained")
    parser.add_argument("--out", type=Path, default=Path("build/ablation.jsonl"))
    parser.add_argument("--every", type=int, default=3, help="evaluate every n-th test image")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    done = {(figures["table"], figures["name"]): figures for figures in map(json.loads, lines)}
    rows = VGG_ROWS if arguments.network == "vgg16" else ROWS
    for row in rows:
        if (row.table, row.name) not in done:
            alike = [
                done[r.table, r.name]
                for r in rows
                if (r.table, r.name) in done and (r.config, r.scales) == (row.config, row.scales)
            ]
            figures = alike[0] if alike else measure(row, arguments.dataset, arguments.init, arguments.every)
            figures = {**figures, "table": row.table, "name": row.name}  # some rows are in both tables
            done[row.table, row.name] = figures
            with arguments.out.open("a") as stream:
                stream.write(json.dumps(figures) + "\n")
            print(json.dumps(figures), flush=True)
    print(markdown(rows, done))


if __name__ == "__main__":
    main()
