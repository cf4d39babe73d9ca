"""The speed of a model on this machine, and an estimate for an archive: the work of `deeplab benchmark`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deeplab import zoo
from deeplab.classes import ClassTable
from deeplab.devices import device_named
from deeplab.errors import ImageError, UserError
from deeplab.images.decoding import EXTENSIONS
from deeplab.models import checkpoint
from deeplab.models.card import FORMAT, Card
from deeplab.models.checkpoint import Model
from deeplab.scoring import speed
from deeplab.scoring.speed import Estimate, Speed
from pipelines.options import BenchmarkOptions
from pipelines.storage import model_registry

CLASSES = 21  # of an architecture without a model: PASCAL VOC's


@dataclass(frozen=True)
class Benchmark:
    """The measured speed of `model` (a label), and the estimate for an archive."""

    model: str
    speed: Speed
    estimate: Estimate

    def json(self) -> dict[str, Any]:
        """All figures, flat except for the estimate."""
        figures = {**dataclasses.asdict(self.speed), "utilisation": self.speed.utilisation}
        return {"model": self.model, **figures, "estimate": dataclasses.asdict(self.estimate)}


def benchmark(options: BenchmarkOptions, watch: Callable[[int, int], None] = lambda done, total: None) -> Benchmark:
    """Measure and estimate. `watch` gets the rounds done and in all. Raises ModelError, DeviceError, UserError for bad photos."""
    model, label = _model(options.model)
    model = options.prepared(model)
    on_gpu = device_named(options.device).type == "cuda"
    photos = _read(Path(options.photos), options.count) if options.photos else speed.pictures(options.count, *options.side)
    refinement = options.refinement(model)
    twin = dataclasses.replace(refinement, mode="exact", backend="torch", device="cuda") if refinement and on_gpu else None
    try:
        measured = speed.measure(
            model,
            photos,
            scoring=options.scoring(model),
            device=options.device,
            crf=refinement.engine() if refinement else None,
            crf_on_device=twin.engine() if twin else None,
            rounds=options.rounds,
            watch=watch,
        )
    except ImageError as error:
        raise UserError(f"{options.photos}: a photo cannot be used: {error}") from error
    gpus = options.gpus if options.gpus is not None else torch.cuda.device_count()
    cores = options.cores or os.cpu_count() or 1
    return Benchmark(label, measured, speed.estimate(measured, options.images, cores, gpus if on_gpu else 0, options.hourly_price))


def _model(name: str) -> tuple[Model, str]:
    """A model and its label; the name of an architecture gives one with random weights."""
    if name not in zoo.ARCHITECTURES:
        model = checkpoint.parse(*model_registry.read_model(name))
        return model, model.label
    classes = ClassTable.from_names([f"class {index}" for index in range(CLASSES)])
    network = zoo.build(name, CLASSES, seed=0).eval()
    card = Card(format=FORMAT, name=name, architecture={"name": name}, classes=[])
    return Model(name, network, classes, card, digest=""), f"{name}, {CLASSES} classes, random weights"


def _read(folder: Path, count: int) -> list[bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not paths:
        raise UserError(f"{folder}: holds no photos ({', '.join(EXTENSIONS[:6])}, ... are accepted)")
    step = max(1, len(paths) // count)  # evenly from the folder
    return [path.read_bytes() for path in paths[::step][:count]]
