"""Training and evaluation as jobs: options in, figures out; what the flows call."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from deeplab.training.loop import TrainingProgress
from pipelines.cluster import ray_jobs
from pipelines.options import EvaluateOptions, RegisteredTraining, TrainOptions
from pipelines.options.training import Training
from pipelines.storage import filesystems
from pipelines.storage.model_registry import Registry
from pipelines.train.evaluation import evaluate

CHECKED_PAIRS = 50


def check_data(options: RegisteredTraining) -> dict[str, int]:
    """Images per split, after opening an even sample of pairs of each. Raises DatasetError for the first bad one.

    Where broken pairs are to be skipped the training finds them all.
    """
    from pipelines.train.packed_datasets import open_dataset

    counts = {}
    for split in (options.split, options.val_split):
        data = open_dataset(options.dataset, split, options.layout)
        for index in () if options.skip_broken else range(0, len(data), max(1, len(data) // CHECKED_PAIRS)):
            data[index]
        counts[split] = len(data)
    return counts


def train(options: RegisteredTraining, report: Callable[[TrainingProgress], None] = lambda progress: None) -> dict[str, Any]:
    """Train and write the model folder `options.out`; returns the best validation summary. Raises what training raises.

    An unfinished training in `out` is gone on with.
    """
    from deeplab.training import states
    from pipelines.train.ray_train import Notice
    from pipelines.train.ray_train import train as run

    shared = options.model_dump(include=set(Training.model_fields))
    record = states.read_record(filesystems.files(options.out))
    job = TrainOptions(model_out=options.out, resume=record is not None and record.best is None, **shared)

    def watch(told: TrainingProgress | Notice) -> None:
        if isinstance(told, TrainingProgress):
            report(told)

    return run(job, watch)


def curve(out: str) -> list[dict[str, Any]]:
    """The validations of the training in `out`, oldest first: step, loss, mean_iou and the other figures of each."""
    lines: list[dict[str, Any]] = []
    try:
        text = filesystems.files(out).read("metrics.jsonl").decode()
    except FileNotFoundError:
        return []
    for line in text.splitlines():
        entry = json.loads(line)
        if lines and entry["step"] <= lines[-1]["step"]:
            lines = []  # the folder held an earlier training
        lines.append(entry)
    return lines


def evaluation(options: RegisteredTraining, model: str) -> EvaluateOptions:
    """How the trained model, or the one that it is compared with, is measured: over the training's workers, each on what it has.

    A training through a Jobs API is measured by this process, on its own device.
    """
    same = {"dataset", "layout", "start_timeout", "skip_broken"}
    if not ray_jobs.is_jobs(options.address):
        same |= {"workers", "address"}
    return EvaluateOptions(model=model, split=options.val_split, **options.model_dump(include=same))


def register(options: RegisteredTraining, figures: dict[str, Any]) -> dict[str, Any]:
    """Publish the trained model; move the alias to it if its mIoU on the split is not worse than the holder's there.

    The holder is measured now, on the same images by the same code. A holder of other classes stays (a person decides).
    Returns entry, moved, reason. Raises RegistryError when somebody else moves the alias meanwhile.
    """
    from deeplab.data.layouts import DatasetError

    assert options.registry is not None
    place = Registry(options.registry)
    entry = place.publish(options.out)
    holder = place.alias(options.alias)
    kept = {key: figures[key] for key in ("mean_iou", "dataset", "split", "images")}
    where, mine = f"{options.val_split} of {options.dataset}", figures["mean_iou"]
    if holder is None:
        place.move(options.alias, entry, kept, None)
        return {"entry": entry, "moved": True, "reason": f"first holder of {options.alias}, mIoU {mine:.4f} on {where}"}
    reference = f"{options.registry}@{options.alias}"
    try:
        theirs = evaluate(evaluation(options, reference))["mean_iou"]
    except DatasetError as error:
        return {"entry": entry, "moved": False, "reason": f"{options.alias} stays on {holder.label}: {error}"}
    comparison = f"mIoU {mine:.4f} against {theirs:.4f} of {holder.label} on {where}"
    if not mine >= theirs:
        return {"entry": entry, "moved": False, "reason": f"{options.alias} stays: {comparison}"}
    place.move(options.alias, entry, kept, holder)
    return {"entry": entry, "moved": True, "reason": comparison}
