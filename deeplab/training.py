"""The single-process training loop: deterministic, resumable at any saved step, and readable from top to bottom."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from deeplab import checkpoint, schedule
from deeplab.classes import ClassTable
from deeplab.datasets import LabelledFolder
from deeplab.errors import UserError
from deeplab.evaluation import evaluate
from deeplab.network import SegmentationNetwork
from deeplab.object_crops import ObjectCrops
from deeplab.objective import training_loss
from deeplab.predictor import Predictor
from deeplab.presets import TrainingConfig
from deeplab.transforms import Augmentation, paste


class TrainingError(UserError):
    """Training cannot start or go on; the message says why and what can be done."""


@dataclass(frozen=True)
class Progress:
    """What a watcher is told after each step: `validation` only after those that validated."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    validation: dict[str, Any] | None = None


class Samples(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The endless training sequence as a pure function of its number: sample n is always the same crop.

    Epoch e visits the images in an order drawn from (seed, e), and the augmentation of sample n draws from (seed, n).
    So a resumed run, or one with more loader processes, sees exactly what an undisturbed one does.
    """

    def __init__(self, data: LabelledFolder, augment: Augmentation | ObjectCrops, config: TrainingConfig) -> None:
        self.data, self.augment = data, augment
        self.paste = config.paste
        self.seed, self.length = config.seed, config.steps * config.batch_size

    def __len__(self) -> int:
        return self.length

    def image_of(self, number: int) -> int:
        """Index in the data set of the image that sample `number` shows."""
        epoch, position = divmod(number, len(self.data))
        return int(np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.data))[position])

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng([self.seed, 2, number])
        image, labels = self.augment(*self.data[self.image_of(number)], rng)
        if rng.random() < self.paste:
            image, labels = paste(image, labels, *self.augment(*self.data[int(rng.integers(len(self.data)))], rng))
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(labels)


def learning_rate_factor(config: TrainingConfig, step: int) -> float:
    """The factor that `step` puts on every base learning rate."""
    if config.schedule == "poly":
        factor = schedule.poly(step, config.steps, config.power)
    else:
        factor = schedule.staircase(step, config.step_every)
    return factor * schedule.warmup(step, config.warmup_steps)


def parameter_groups(network: SegmentationNetwork, config: TrainingConfig) -> list[dict[str, Any]]:
    """Weights x 1, biases x 2 without weight decay, the head's x m and x 2m, as in the released solvers."""
    return network.parameter_groups(config.learning_rate, config.head_multiplier, config.weight_decay)


def train(
    network: SegmentationNetwork,
    config: TrainingConfig,
    training: LabelledFolder,
    validation: LabelledFolder,
    out: Path,
    *,
    card: dict[str, Any],
    classes: ClassTable,
    device: str = "auto",
    workers: int = 1,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Train `network` and write the model folder `out` with the weights that scored best on `validation`.

    The state (weights, optimizer, average, best so far) is saved at every validation in `out`/training-state.pt, and
    one JSON line per validation goes to `out`/metrics.jsonl. `resume` continues from that state; without it a folder
    that holds one is refused. `card`: what the model card says besides architecture, classes, training and metrics.
    Returns the best validation summary. Raises TrainingError for a loss or weights that are no numbers (state and best
    model stay), or an unfit `out`.
    """
    state_file = out / "training-state.pt"
    if state_file.exists() and not resume:
        raise TrainingError(f"{out} holds an unfinished training: --resume continues it, another folder starts afresh")
    if resume and not state_file.exists():
        raise TrainingError(f"{out} holds no training state to resume")
    if not resume and not checkpoint.replaceable(out):
        raise TrainingError(f"{out} exists and is no model folder; it is left alone, name another")
    out.mkdir(parents=True, exist_ok=True)
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    torch.manual_seed(config.seed)
    network.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not network.learnt_norm:
        network.freeze_batch_norm()
    for layer in network.backbone.layers()[: config.frozen_layers]:  # type: ignore[operator]
        layer.requires_grad_(False)
    groups = parameter_groups(network, config)
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
    else:
        optimizer = torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    average = {key: value.detach().clone() for key, value in network.state_dict().items()} if config.ema else None
    start, best = 0, dict[str, Any](mean_iou=-1.0)
    if resume:
        state = torch.load(state_file, map_location=where, weights_only=True)
        if state["config"] != json.dumps(config.as_dict()):
            raise TrainingError(f"{out} was trained with another configuration: {state['config']}")
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average, start, best = state["average"], state["step"], state["best"]

    mean = network.normalization.mean_rgb
    augment: Augmentation | ObjectCrops = Augmentation(config.crop, config.scales, mean, config.mirror, config.colour)
    if config.sampling != "image":
        augment = ObjectCrops(config.crop, config.sampling, mean, config.mirror)
    samples = Samples(training, augment, config)

    def diverged(what: str, step: int) -> TrainingError:
        numbers = range(step * config.batch_size, (step + 1) * config.batch_size)
        names = [training.stems[samples.image_of(number)] for number in numbers]
        return TrainingError(f"{what} at step {step} on {', '.join(names)}; try a lower learning rate")

    loader = DataLoader(
        samples,
        batch_size=config.batch_size,
        sampler=range(start * config.batch_size, config.steps * config.batch_size),
        num_workers=workers,
        pin_memory=where.type == "cuda",
    )
    for step, (images, labels) in enumerate(loader, start):
        factor = learning_rate_factor(config, step)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        network.train()
        x = network.normalization.apply(images.to(where)).contiguous(memory_format=torch.channels_last)
        # Dropout, too, is a function of the step, so that a resumed run drops the same channels.
        torch.manual_seed(int(np.random.default_rng([config.seed, 3, step]).integers(2**31)))
        loss = training_loss(network, x, labels.to(where), config)
        if not math.isfinite(loss.item()):
            raise diverged(f"loss is {loss.item()}", step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if average is not None:
            update_average(average, network, config.ema, step)
        done = step + 1
        summary = None
        if done % config.validate_every == 0 or done == config.steps:
            if not checkpoint.storable(network):
                raise diverged("weights are beyond half precision", step)
            trained = {key: value.detach().clone() for key, value in network.state_dict().items()}
            network.load_state_dict(average or trained)
            summary = evaluate(Predictor(network, device=where.type), validation).total.summary(list(classes.names))
            if summary["mean_iou"] > best["mean_iou"]:
                best = {**summary, "step": done, "split": validation.split}
                checkpoint.save(out, network, _card(card, config, classes, best))
            network.load_state_dict(trained)
            state = {"network": trained, "optimizer": optimizer.state_dict(), "average": average, "step": done, "best": best}
            save_state(state_file, {**state, "config": json.dumps(config.as_dict())})
            with (out / "metrics.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": done, "loss": loss.item(), **summary}) + "\n")
        report(Progress(done, config.steps, loss.item(), config.learning_rate * factor, summary))
    state_file.unlink(missing_ok=True)
    return best


def update_average(average: dict[str, torch.Tensor], network: SegmentationNetwork, decay: float, step: int) -> None:
    """average <- decay * average + (1 - decay) * weights, with a shorter memory over the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                average[key].lerp_(value, 1 - decay)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write to a second name and rename, so that a kill in mid-write leaves the earlier state."""
    staging = path.with_suffix(".tmp")
    torch.save(state, staging)
    os.replace(staging, path)


def _card(card: dict[str, Any], config: TrainingConfig, classes: ClassTable, best: dict[str, Any]) -> dict[str, Any]:
    return {
        **card,
        "architecture": {"name": config.architecture, "options": {**config.options, **config.saved_options}},
        "classes": [{"name": n, "colour": list(c)} for n, c in zip(classes.names, classes.colours, strict=True)],
        "training": config.as_dict(),
        "metrics": {"validation": best},
    }
