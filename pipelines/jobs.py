"""Training and evaluation as jobs: options in, figures out; what the flows call."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from deeplab.presets import PRESETS
from deeplab.training import Progress
from pipelines import storage
from pipelines.options import EvaluateOptions as EvaluateOptions
from pipelines.options import short
from pipelines.registry import ALIAS, Registry

CHECKED_PAIRS = 50


class TrainOptions(BaseModel):
    """One training, and the alias that the model may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = Field(description="Folder, s3:// prefix or pack of labelled images (docs/training.md)")
    out: str = Field(description="Model folder or s3:// prefix to write; an unfinished training in it is gone on with")
    preset: str = Field(default="finetune", description="Training preset", json_schema_extra={"enum": list(PRESETS)})
    init: str = Field(default="pets", description="Weights to start from: a model, or ImageNet .safetensors")
    layout: str = Field(default="auto", pattern=r"^[\w-]+$", description="How the data set is laid out (docs/training.md)")
    split: str = Field(default="train", pattern=r"^[\w.-]+$", description="Split to train on")
    val_split: str = Field(default="val", pattern=r"^[\w.-]+$", description="Split to choose and compare on")
    name: str | None = Field(default=None, pattern=r"^[\w.-]+$", description="Name in the model card; default the folder's")
    steps: int | None = Field(default=None, ge=1, description="Instead of the preset's steps")
    batch_size: int | None = Field(default=None, ge=1, le=4096, description="Instead of the preset's batch size")
    crop: int | None = Field(default=None, ge=33, le=4097, description="Instead of the preset's crop, in pixels")
    learning_rate: float | None = Field(default=None, gt=0, le=10, description="Instead of the preset's learning rate")
    schedule: Literal["poly", "step"] | None = Field(default=None, description="Instead of the preset's fall of the rate")
    objective: Literal["single", "official", "kazuto"] | None = Field(default=None, description="One loss, or one per scale (MSC)")
    ema: float | None = Field(default=None, ge=0, lt=1, description="Instead of the preset's running mean of the weights; 0 is off")
    seed: int | None = Field(default=None, ge=0, description="Instead of the preset's seed")
    precision: Literal["float32", "bfloat16", "float16"] | None = Field(default=None, description="Instead of the preset's")
    clip_norm: float | None = Field(default=None, ge=0, description="Instead of the preset's greatest gradient; 0 is off")
    batch_norm: Literal["frozen", "sync"] | None = Field(default=None, description="Instead of the preset's")
    validate_every: int | None = Field(default=None, ge=1, description="Instead of the preset's steps between validations")
    accumulate: int = Field(default=1, ge=1, le=4096, description="Passes per worker that make one step")
    compile: bool = Field(default=False, description="Run the network through torch.compile")
    checkpoint_every: int = Field(default=0, ge=0, description="Also save the state every so many steps")
    keep: int = Field(default=2, ge=1, description="Newest states that stay; the best step's stays too")
    skip_broken: bool = Field(default=False, description="Leave broken pairs out instead of refusing the data set")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where to train")
    loaders: int = Field(default=1, ge=0, le=64, description="Processes that load images, per worker")
    workers: int = Field(default=1, ge=1, le=4096, description="Processes that train together")
    min_workers: int | None = Field(default=None, ge=1, description="Go on with as few when nodes are lost")
    resize_every: float = Field(default=60, gt=0, description="Seconds between looks for nodes, with min_workers")
    address: str | None = Field(
        default=None, description="Ray cluster (host:port or 'auto'), or its Jobs API (http://host:8265); none starts Ray here"
    )
    retries: int = Field(default=3, ge=0, description="Restarts from the last state after a worker or node died")
    start_timeout: float = Field(default=600, gt=0, description="Seconds to wait for the cluster to give the workers")
    licence: str = Field(default="not stated", description="Licence of the data, for the model card")
    registry: str | None = Field(default=None, description="Folder or s3:// prefix of the model registry; none registers nothing")
    alias: str = Field(
        default="production",
        pattern=f"^{ALIAS.pattern}$",
        description="Alias that moves to the model if its mIoU on val_split is not worse",
    )

    @field_validator("preset")
    @classmethod
    def _known(cls, preset: str) -> str:
        if preset not in PRESETS:
            raise ValueError(f"one of {', '.join(PRESETS)} is accepted")
        return preset

    @property
    def title(self) -> str:
        """The run in a few words, for lists of runs."""
        return f"{short(self.out)} on {short(self.dataset)}"


def check_data(options: TrainOptions) -> dict[str, int]:
    """Images per split, after opening an even sample of pairs of each. Raises DatasetError for the first bad one."""
    from deeplab.datasets import DatasetError
    from pipelines.pack import open_dataset

    counts = {}
    for split in (options.split, options.val_split):
        data = open_dataset(options.dataset, split, options.layout)
        for index in range(0, len(data), max(1, len(data) // CHECKED_PAIRS)):
            data[index]
        counts[split] = len(data)
    if len(counts) < 2:
        raise DatasetError(
            f"{options.dataset}: split {options.split} to train on and to choose on; two different ones are accepted"
        )
    return counts


def train(options: TrainOptions, report: Callable[[Progress], None] = lambda progress: None) -> dict[str, Any]:
    """Train and write the model folder `options.out`; returns the best validation summary. Raises what training raises.

    An unfinished training in `out` is gone on with.
    """
    from deeplab import states
    from pipelines import options as plain
    from pipelines.train import Notice
    from pipelines.train import train as run

    shared = options.model_dump(exclude={"out", "registry", "alias"})
    record = states.read_record(storage.files(options.out))
    job = plain.TrainOptions(model_out=options.out, resume=record is not None and record.best is None, **shared)

    def watch(told: Progress | Notice) -> None:
        if isinstance(told, Progress):
            report(told)

    return run(job, watch)


def curve(out: str) -> list[dict[str, Any]]:
    """The validations of the training in `out`, oldest first: step, loss, mean_iou and the other figures of each."""
    lines: list[dict[str, Any]] = []
    try:
        text = storage.files(out).read("metrics.jsonl").decode()
    except FileNotFoundError:
        return []
    for line in text.splitlines():
        entry = json.loads(line)
        if lines and entry["step"] <= lines[-1]["step"]:
            lines = []  # the folder held an earlier training
        lines.append(entry)
    return lines


def evaluate(options: EvaluateOptions, report: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Figures of a model on a split, JSON-ready: model, images, mean_iou, iou by class and the other metrics.

    Raises ModelError, and DatasetError for a data set that cannot be used or is of other classes.
    """
    from pipelines.evaluate import evaluate as run

    figures = run(options, report)
    return {key: value for key, value in figures.items() if key != "confusion"}


def register(options: TrainOptions, figures: dict[str, Any]) -> dict[str, Any]:
    """Publish the trained model; move the alias to it if its mIoU on the split is not worse than the holder's there.

    The holder is measured now, on the same images by the same code. A holder of other classes stays (a person decides).
    Returns entry, moved, reason. Raises RegistryError when somebody else moves the alias meanwhile.
    """
    from deeplab.datasets import DatasetError

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
    same = options.model_dump(include={"dataset", "layout", "device"})
    measured = EvaluateOptions(model=reference, split=options.val_split, **same)
    try:
        theirs = evaluate(measured)["mean_iou"]
    except DatasetError as error:
        return {"entry": entry, "moved": False, "reason": f"{options.alias} stays on {holder.label}: {error}"}
    comparison = f"mIoU {mine:.4f} against {theirs:.4f} of {holder.label} on {where}"
    if not mine >= theirs:
        return {"entry": entry, "moved": False, "reason": f"{options.alias} stays: {comparison}"}
    place.move(options.alias, entry, kept, holder)
    return {"entry": entry, "moved": True, "reason": comparison}
