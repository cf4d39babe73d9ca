"""The `finetune` preset on several data sets, against the preset before it and torchvision's reference recipe: docs/training.md.

    python benchmarks/finetune.py ../shared/data/pets ../shared/data/facade ../shared/data/aerial --steps 150 --crop 257 \
        --imagenet ../shared/weights/mobilenet_v2_imagenet.safetensors

A row is a training on `train` with the same number of steps, batch and crop for all recipes, whose last weights are scored on
`test` (`val` if a data set has no `test`) at one scale without CRF. Images are cut into tiles of at most 641 pixels for training.
Each finished row is appended to --out; rows that are there already are not repeated. Nothing is chosen on the scored split:
`--hold-out WORD` scores the training images whose names begin with that word instead, and trains on the others.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deeplab import weights, zoo
from deeplab.classes import ClassTable
from deeplab.data.datasets import LabelledFolder
from deeplab.data.inspection import inspect
from deeplab.evaluation.predictions import evaluate
from deeplab.models import checkpoint
from deeplab.scoring.predictor import Predictor, Scoring
from deeplab.training.adaptation import adapted
from deeplab.training.loop import Execution, train
from deeplab.training.presets import TrainingConfig, finetune, pets

TILE = 641


class Tiles:
    """A split in memory, cut into equal tiles of at most TILE pixels a side, as `deeplab pack --tile` cuts it."""

    remote = False

    def __init__(self, data: LabelledFolder) -> None:
        self.classes, self.split = data.classes, data.split
        self.stems: list[str] = []
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []
        for stem, (image, labels) in zip(data.stems, data, strict=True):
            rows, columns = ([side * k // -(-side // TILE) for k in range(-(-side // TILE) + 1)] for side in labels.shape)
            for top, bottom in itertools.pairwise(rows):
                for left, right in itertools.pairwise(columns):
                    self.stems.append(f"{stem}-{top}-{left}")
                    self.pairs.append((image[top:bottom, left:right], labels[top:bottom, left:right]))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.pairs[index]

    def encoded(self, index: int) -> tuple[bytes, bytes]:
        return b"", b""

    def decode(self, index: int, image_bytes: bytes, label_bytes: bytes) -> tuple[np.ndarray, np.ndarray]:
        return self.pairs[index]

    def decode_picture(self, index: int, image_bytes: bytes, label_bytes: bytes) -> tuple[Image.Image, np.ndarray]:
        image, labels = self.pairs[index]
        return Image.fromarray(image), labels


def recipes(steps: int, crop: int, imagenet: str) -> dict[str, tuple[TrainingConfig, str]]:
    """Name -> configuration and initial weights, all for the same number of steps and the same crops."""
    new = finetune()
    before = replace(pets(), saved_options={"output_stride": 8})  # the finetune of then, which did not mix the grids
    # torchvision's references/segmentation: SGD 0.01, momentum 0.9, weight decay 1e-4, poly, resize by 0.5 to 2, crop, mirror.
    # On our network and start; scale and shift of batch norm are learnt, but not its statistics, which are folded into the
    # weights that there are: with batch statistics the start would be lost. The gradient is clipped: without that, the loss is NaN
    # at step 23 on facade.
    reference = TrainingConfig(
        "torchvision", new.architecture, new.options, new.saved_options, optimizer="sgd", learning_rate=0.01, head_multiplier=1.0,
        momentum=0.9, weight_decay=1e-4, scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0), batch_norm="affine",
        frozen_layers=new.frozen_layers, precision=new.precision, batch_size=new.batch_size, clip_norm=1.0,
    )  # fmt: skip
    rows = {"before": (before, imagenet), "finetune": (new, new.default_init), "torchvision": (reference, new.default_init)}
    return {name: (replace(c, steps=steps, passes=0.0, crop=crop, validate_every=steps), init) for name, (c, init) in rows.items()}


def subset(data: LabelledFolder, start: str, inside: bool) -> LabelledFolder:
    """The pairs whose names begin with `start`, or the others."""
    return data.without([stem for stem in data.stems if stem.startswith(start) != inside]) if start else data


def measure(config: TrainingConfig, init: str, folder: Path, hold_out: str) -> dict[str, Any]:
    training = LabelledFolder(folder, "train")
    scored = (
        subset(training, hold_out, True)
        if hold_out
        else LabelledFolder(folder, "test" if (folder / "test.txt").exists() else "val")
    )
    tiles = Tiles(subset(training, hold_out, False))
    config = adapted(config, inspect(tiles, threads=1), weights.known_classes(init, config.architecture))
    network = zoo.build(config.architecture, len(tiles.classes), seed=config.seed, **config.options)
    weights.initialise(network, init, tiles.classes)
    one = training.without(training.stems[1:])  # the loop validates once, at the end; nothing depends on it
    losses: list[float] = []
    began = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        train(
            network, config, tiles, one, Path(out) / "model", card={"name": "benchmark"},
            classes=ClassTable.from_names(tiles.classes), execution=Execution("cpu", loaders=0),
            report=lambda progress: losses.append(progress.loss),
        )  # fmt: skip
        seconds = time.process_time() - began
        saved = checkpoint.load(Path(out) / "model")
    summary = evaluate(Predictor(saved.network, Scoring(precision="bfloat16"), device="cpu"), scored).total.summary(scored.classes)
    return {
        "images": len(scored), "split": scored.split, "mean_iou": round(summary["mean_iou"], 4),
        "loss": round(sum(losses[-20:]) / len(losses[-20:]), 3), "train_cpu_seconds": round(seconds),
        "iou": {name: value and round(value, 3) for name, value in summary["iou"].items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--crop", type=int, default=257)
    parser.add_argument("--imagenet", required=True, help="MobileNetV2's ImageNet weights, from which the earlier preset starts")
    parser.add_argument("--recipes", nargs="+", default=["before", "finetune", "torchvision"])
    parser.add_argument("--hold-out", default="", help="score the training images whose names begin so")
    parser.add_argument("--out", type=Path, default=Path("build/finetune.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    for name in arguments.recipes:
        config, init = recipes(arguments.steps, arguments.crop, arguments.imagenet)[name]
        for folder in arguments.datasets:
            key = {"data": folder.name, "recipe": name, "steps": config.steps, "crop": config.crop, "hold_out": arguments.hold_out}
            if not any(key.items() <= row.items() for row in rows):
                row = key | measure(config, init, folder, arguments.hold_out)
                rows.append(row)
                with arguments.out.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
