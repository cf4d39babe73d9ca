"""The steps of the training flow: options in, figures out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypedDict

from deeplab.training.loop import TrainingProgress
from pipelines.cluster import ray_jobs
from pipelines.options import EvaluateOptions, RegisteredTraining, TrainOptions
from pipelines.options.training import Training
from pipelines.storage import filesystems
from pipelines.storage.model_registry import Registry
from pipelines.train.evaluation import evaluate

CHECKED_PAIRS = 50


class Registration(TypedDict):
    """The trained model's entry in the registry, whether the alias moved to it, and why."""

    entry: str
    moved: bool
    reason: str


def check_data(options: RegisteredTraining) -> dict[str, int]:
    """Images per split, after opening an even sample of pairs of each. Raises DatasetError for the first broken one.

    With `skip_broken` no pairs are opened: the training finds all broken ones.
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
    """Train and write the model folder `options.out`, or continue its unfinished training; errors as `ray_train.train`.

    Returns the best validation summary.
    """
    from deeplab.training import saved_states
    from pipelines.train.ray_train import Notice
    from pipelines.train.ray_train import train as run

    shared = options.model_dump(include=set(Training.model_fields))
    record = saved_states.read_record(filesystems.files(options.out))
    job = TrainOptions(model_out=options.out, resume=record is not None and record.best is None, **shared)

    def watch(progress: TrainingProgress | Notice) -> None:
        if isinstance(progress, TrainingProgress):
            report(progress)

    return run(job, watch)


def curve(out: str) -> list[dict[str, Any]]:
    """The validations of the training in `out`, oldest first, with step, loss, mean_iou and the other figures."""
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
    """The options to evaluate the trained model, or the one it is compared with, on the training's workers.

    After a training through a Jobs API, this process evaluates on its own device.
    """
    same = {"dataset", "layout", "start_timeout", "skip_broken"}
    if not ray_jobs.is_jobs(options.address):
        same |= {"workers", "address"}
    return EvaluateOptions(model=model, split=options.val_split, **options.model_dump(include=same))


def register(options: RegisteredTraining, figures: dict[str, Any]) -> Registration:
    """Publish the trained model; move the alias to it if its mIoU on the split is not worse than the current holder's.

    The holder is evaluated now, on the same images by the same code. A holder of other classes stays (a person decides).
    Raises RegistryError if somebody else moves the alias meanwhile.
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
        return Registration(entry=entry, moved=True, reason=f"first holder of {options.alias}, mIoU {mine:.4f} on {where}")
    reference = f"{options.registry}@{options.alias}"
    try:
        theirs = evaluate(evaluation(options, reference))["mean_iou"]
    except DatasetError as error:
        return Registration(entry=entry, moved=False, reason=f"{options.alias} stays on {holder.label}: {error}")
    comparison = f"mIoU {mine:.4f} against {theirs:.4f} of {holder.label} on {where}"
    if not mine >= theirs:
        return Registration(entry=entry, moved=False, reason=f"{options.alias} stays: {comparison}")
    place.move(options.alias, entry, kept, holder)
    return Registration(entry=entry, moved=True, reason=comparison)
