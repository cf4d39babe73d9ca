"""The training loop of one process or several: deterministic, and resumable at any saved step."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from deeplab.classes import ClassTable
from deeplab.contact_sheet import contact_sheet
from deeplab.data.augmentation import Augmentation
from deeplab.data.datasets import Labelled
from deeplab.data.object_crops import ObjectCrops
from deeplab.devices import device_named
from deeplab.distributed import Ranks
from deeplab.errors import UserError
from deeplab.evaluation.metrics import Summary
from deeplab.evaluation.plots import training_curves
from deeplab.evaluation.predictions import evaluate
from deeplab.files import Files, as_files, mark_output
from deeplab.models import checkpoint
from deeplab.networks.network import SegmentationNetwork
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.settings import Scoring
from deeplab.training import saved_states
from deeplab.training.loading import batches_of, default_loaders
from deeplab.training.losses import labelled_pixels
from deeplab.training.objective import training_loss
from deeplab.training.optimizer import learning_rate_factor, optimizer_of, update_average
from deeplab.training.presets import TrainingConfig
from deeplab.training.sampling import Samples, Shares
from deeplab.training.saved_states import TrainingError

SHOWN = 6  # validation images on the sheet of sample predictions
METRICS, SAMPLES, CURVES = "metrics.jsonl", "samples", "samples/curves.png"


class Stopped(UserError):
    """Training was stopped on request: the state of `step` is saved, from which `--resume` continues."""

    def __init__(self, out: object, step: int) -> None:
        super().__init__(f"stopped at step {step}; the state is saved in {out}: run the same command with --resume to continue")
        self.out, self.step = str(out), step

    def __reduce__(self) -> tuple[type[Stopped], tuple[str, int]]:
        return Stopped, (self.out, self.step)


@dataclass(frozen=True)
class TrainingProgress:
    """The report after each step. After a validation also its summary, and the name of the file with sample predictions.

    `at`: when the step was done, before its validation, in seconds since the epoch; `waited`: seconds of the step spent waiting
    for data; `validations_left`: how many follow.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    validation: Summary | None = None
    samples: str | None = None
    at: float = field(default=0.0, compare=False)
    waited: float = field(default=0.0, compare=False)
    validations_left: int = 0


@dataclass(frozen=True)
class Execution:
    """How a run is executed, which does not change what it computes (up to the rounding of sums).

    `device`: auto, cpu or cuda. `loaders`: processes per worker that read and augment ahead, 0 for none,
    None for `deeplab.training.loading.default_loaders`. `accumulate`:
    forward and backward passes per worker and optimizer step. `compile`: use torch.compile. The state is saved at every
    validation and, if not 0, every `checkpoint_every` steps; the newest `keep` states are kept.
    """

    device: str = "auto"
    loaders: int | None = None
    accumulate: int = 1
    compile: bool = False
    checkpoint_every: int = 0
    keep: int = 2


class Objective(nn.Module):
    """Pixels and labels to the loss: one module to differentiate, synchronise and compile."""

    def __init__(self, network: SegmentationNetwork, config: TrainingConfig) -> None:
        super().__init__()
        self.network, self.config = network, config

    def forward(self, images: torch.Tensor, labels: torch.Tensor, keep: torch.Tensor | None, share: float) -> torch.Tensor:
        """images: B x 3 x H x W uint8; labels: B x H x W; keep: B x C factors of the features; share: see training_loss."""
        x = self.network.normalization.apply(images).contiguous(memory_format=torch.channels_last)
        return training_loss(self.network, x, labels, self.config, keep, share)


def train(
    network: SegmentationNetwork,
    config: TrainingConfig,
    training: Labelled,
    validation: Labelled,
    out: Path | Files,
    *,
    card: dict[str, Any],
    classes: ClassTable,
    execution: Execution = Execution(),
    resume: bool = False,
    run: str | None = None,
    ranks: Ranks | None = None,
    stop: Callable[[], bool] = lambda: False,
    report: Callable[[TrainingProgress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Train `network` and write the model folder `out` with the weights that scored best on `validation`.

    States (weights, optimizer, average, best so far) go to `out`/training, one JSON line per validation to metrics.jsonl (its
    `loss` is the mean since the validation before), sample predictions and a picture of loss and mIoU to samples/. `resume`
    continues from the newest state; without it a folder that holds one is refused. `run`: the id of a run that another process
    began (`saved_states.begin`), continued from its newest state, if any. `card`: entries of the model card besides architecture,
    classes, training and metrics. `stop` is called at every step and validation image, on every rank: if one returns True, the
    state is saved and Stopped raised. Every rank calls `train` with the same arguments; `report` is called on rank 0.

    Returns the best validation summary. Raises TrainingError if the loss or weights are not finite (states and the best
    model are kept), and if `out` is unsuitable or cannot be written.
    """
    out = as_files(out)
    device = device_named(execution.device)
    ranks = ranks or Ranks(device)
    if ranks.size * execution.accumulate > config.batch_size:
        raise TrainingError(
            f"a batch of {config.batch_size} cannot be divided over {ranks.size} workers x {execution.accumulate} passes: "
            "each needs at least one crop"
        )
    if not network.classes == len(classes) == len(training.classes) or training.classes != validation.classes:
        raise TrainingError(
            f"the network has {network.classes} classes, the training set {len(training.classes)}, "
            f"the validation set {len(validation.classes)}: they must be the same"
        )
    record = ranks.on_first(
        lambda: saved_states.attach(out, run) if run else saved_states.begin(out, config, training, validation, resume)
    )
    if record.best is not None:
        return record.best

    torch.manual_seed(config.seed)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    frozen = network.backbone.layers()[: config.frozen_layers] if config.frozen_layers else []  # type: ignore[operator]
    _prepare_batch_norm(network, config, ranks)
    for layer in frozen:
        layer.requires_grad_(False)
    optimizer = optimizer_of(network, config)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
    average = {key: value.detach().clone() for key, value in network.state_dict().items()} if config.ema else None
    start, validated, loss = 0, 0, math.nan
    losses = list[float]()  # of the steps since the last validation
    best, history = dict[str, Any](mean_iou=-1.0), list[dict[str, Any]]()
    state = ranks.on_first(lambda: saved_states.newest(out, record.id))
    if state is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        average = {key: value.to(device) for key, value in state["average"].items()} if config.ema else None
        start, validated, loss = state["step"], state["validated"], state["loss"]
        best, history = state["best"], state["history"]
        losses = state.get("losses", [loss])  # states of earlier versions have the last loss alone

    objective = ranks.wrap(Objective(network, config))
    compiled = torch.compile(objective) if execution.compile else objective
    mean = network.normalization.mean_rgb
    augment: Augmentation | ObjectCrops = Augmentation(
        config.crop, config.scales, mean, config.mirror, config.colour, config.class_crops
    )
    if config.sampling != "image":
        augment = ObjectCrops(config.crop, config.sampling, mean, config.mirror)
    samples = Samples(training, augment, config)
    shares = Shares(config.batch_size, start, config.steps, ranks.rank, ranks.size, execution.accumulate)
    loaders = default_loaders(device) if execution.loaders is None else execution.loaders
    batches = batches_of(samples, shares, loaders, device)

    def diverged(reason: str, step: int) -> TrainingError:
        numbers = range(step * config.batch_size, (step + 1) * config.batch_size)
        names = [training.stems[samples.image_of(number)] for number in numbers]
        return TrainingError(f"{reason} at step {step} on {', '.join(names)}; try a lower learning rate")

    def save(done: int) -> None:
        if not checkpoint.storable(network):
            raise diverged("weights are beyond half precision", done - 1)
        state: dict[str, Any] = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"scaler": scaler.state_dict(), "average": average, "best": best, "history": history}
        state |= {"step": done, "validated": validated, "loss": loss, "losses": losses}
        ranks.on_first(lambda: saved_states.save(out, record.id, state, execution.keep))

    def validate(done: int) -> tuple[Summary, str]:
        nonlocal best, validated, losses
        if not checkpoint.storable(network):
            raise diverged("weights are beyond half precision", done - 1)
        trained = {key: value.detach().clone() for key, value in network.state_dict().items()}
        shown: list[tuple[str, np.ndarray, np.ndarray]] = []

        def collect(index: int, image: np.ndarray, predicted: np.ndarray) -> None:
            if ranks.first and len(shown) < SHOWN:
                shown.append((validation.stems[index], image, predicted))

        def check_stop(done_images: int, images: int) -> None:
            if ranks.any(stop()):
                network.load_state_dict(trained)
                save(done)
                raise Stopped(out, done)

        network.load_state_dict(average or trained)
        predictor = Predictor(network, Scoring(precision=config.precision), device=device.type)
        evaluation = evaluate(predictor, validation, ranks=ranks, report=check_stop, look=collect)
        summary = evaluation.total.summary(classes.names)
        better = summary["mean_iou"] > best["mean_iou"]
        if better:
            best = {**summary, "step": done, "split": validation.split}
        sheet = f"{SAMPLES}/step-{done:08d}.jpg"
        history.append({"step": done, "loss": sum(losses) / len(losses), **summary})

        def write() -> None:
            try:
                if better:
                    checkpoint.save(out, network, _card(card, config, classes, best))
                mark_output(out, SAMPLES)
                out.write(sheet, _jpeg(shown, classes, f"step {done}, mIoU {summary['mean_iou']:.3f}"))
                out.write(CURVES, _png(training_curves(history)))
                out.write(METRICS, "".join(json.dumps(line) + "\n" for line in history).encode())
            except OSError as error:
                raise TrainingError(f"{out} cannot be written at step {done}: {error}; earlier states are kept") from error

        ranks.on_first(write)
        network.load_state_dict(trained)
        validated, losses = done, []
        return summary, sheet

    def due(done: int) -> bool:
        return validated < done and (done % config.validate_every == 0 or done == config.steps)

    if due(start):  # the earlier process ended between a step and its validation
        validate(start)
        save(start)
    for step in range(start, config.steps):
        factor = learning_rate_factor(config, step)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        network.train()
        for layer in frozen:
            layer.eval()
        began = time.perf_counter()
        passes = [next(batches) for _ in range(execution.accumulate)]
        waited = time.perf_counter() - began
        own_pixels = sum(labelled_pixels(labels, network.stride, config.loss) for _, labels in passes)
        pixels, stopping = ranks.sum([own_pixels, stop()])
        optimizer.zero_grad()
        loss = 0.0
        for part, (images, labels) in enumerate(passes):
            keep = _dropout(config, shares.of_step(step)[part], network).to(device) if config.dropout else None
            # Dropout inside the network also depends on the step alone, so that a resumed run drops the same channels.
            torch.manual_seed(int(np.random.default_rng([config.seed, 3, step, ranks.rank, part]).integers(2**31)))
            last = part == len(passes) - 1
            with nullcontext() if last else ranks.no_sync(objective):
                with _autocast(device, config):
                    share = labelled_pixels(labels, network.stride, config.loss) / max(pixels, 1)
                    value = compiled(images.to(device), labels.to(device), keep, share)
                # Gradients are averaged over the ranks, but the ranks' losses are parts of one sum.
                scaler.scale(value * ranks.size).backward()
            loss += value.item()
        (loss,) = ranks.sum([loss])
        if not math.isfinite(loss):
            raise diverged(f"loss is {loss}", step)
        losses.append(loss)
        if config.clip_norm:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_([p for p in network.parameters() if p.grad is not None], config.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        if average is not None:
            update_average(average, network, config.ema, step)
        done, at = step + 1, time.time()
        summary, sheet = validate(done) if due(done) and not stopping else (None, None)
        if summary or stopping or (execution.checkpoint_every and done % execution.checkpoint_every == 0):
            save(done)
        if ranks.first:
            rate, left = config.learning_rate * factor, -(-config.steps // config.validate_every) - done // config.validate_every
            left = 0 if done == config.steps else left
            report(TrainingProgress(done, config.steps, loss, rate, summary, sheet, at, waited, left))
        if stopping:
            raise Stopped(out, done)
    if ranks.first:
        saved_states.finish(out, record, best)
    return best


def _autocast(device: torch.device, config: TrainingConfig) -> AbstractContextManager[object]:
    if config.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if config.precision == "bfloat16" else torch.float16)


def _prepare_batch_norm(network: SegmentationNetwork, config: TrainingConfig, ranks: Ranks) -> None:
    if config.batch_norm != "sync" and not network.learnt_norm:
        network.freeze_batch_norm(affine=config.batch_norm == "frozen")
    elif ranks.size > 1:
        if ranks.device.type != "cuda":
            raise TrainingError("batch_norm sync with several workers needs GPUs (torch has it for CUDA only); frozen is accepted")
        nn.SyncBatchNorm.convert_sync_batchnorm(network)


def _dropout(config: TrainingConfig, numbers: list[int], network: SegmentationNetwork) -> torch.Tensor:
    """B x C factors 0 or 1 / (1 - p), drawn per sample number, so that a divided batch drops the same channels."""
    channels = int(network.backbone.channels)  # type: ignore[arg-type]
    masks = [np.random.default_rng([config.seed, 4, number]).random(channels) >= config.dropout for number in numbers]
    return torch.from_numpy(np.stack(masks).astype(np.float32) / (1 - config.dropout))


def _jpeg(shown: list[tuple[str, np.ndarray, np.ndarray]], classes: ClassTable, title: str) -> bytes:
    buffer = io.BytesIO()
    contact_sheet(shown, classes, title).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _card(card: dict[str, Any], config: TrainingConfig, classes: ClassTable, best: dict[str, Any]) -> dict[str, Any]:
    return {
        **card,
        "architecture": {"name": config.architecture, "options": {**config.options, **config.saved_options}},
        "classes": [{"name": n, "colour": list(c)} for n, c in zip(classes.names, classes.colours, strict=True)],
        "training": config.as_dict(),
        "metrics": {"validation": best},
    }
