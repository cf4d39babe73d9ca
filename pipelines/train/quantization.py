"""The work of `deeplab quantize`: ranges and biases for int8 from photos, checked on others, written into a model folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load as load_tensors

from deeplab.errors import ImageError, UserError, counted
from deeplab.evaluation.metrics import Confusion
from deeplab.images.decoding import EXTENSIONS, decode
from deeplab.models import checkpoint
from deeplab.models.quantized_weights import taken_apart, with_quantization
from deeplab.scoring.int8.calibration import MOST_PHOTOS, calibrated
from deeplab.scoring.int8.choice import require_int8
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.settings import Scoring
from pipelines.options import QuantizeOptions
from pipelines.storage import filesystems
from pipelines.storage.model_registry import changeable, read_model
from pipelines.train.packed_datasets import open_dataset
from pipelines.train.stored_masks import require_classes

Report = Callable[[str, int, int], None]


class QuantizationError(UserError):
    """The photos cannot be used, or int8 says too often something else than float32."""


@dataclass
class Agreement:
    """Over photos: the share of pixels with the same label in int8 as in float32. `worst`: of one photo."""

    photos: int = 0
    total: float = 0.0
    worst: float = 1.0

    def add(self, ours: np.ndarray, exact: np.ndarray) -> None:
        same = float((ours == exact).mean())
        self.photos += 1
        self.total += same
        self.worst = min(self.worst, same)

    @property
    def mean(self) -> float:
        return self.total / self.photos


def quantize(options: QuantizeOptions, report: Report = lambda phase, done, total: None) -> dict[str, Any]:
    """Quantise a model and write it; returns the card's entry and the new label, JSON-ready.

    Some photos give the ranges and biases; on the others the labels are compared with float32's. Raises ModelError, Int8Error,
    DatasetError, and QuantizationError for photos that cannot be used and for too little agreement. Nothing is written then.
    """
    source = read_model(options.model)
    model = checkpoint.parse(*source)
    require_int8(model.network, ranges=False)
    # Before the work, so that a folder that must not change is refused at once.
    place = (
        filesystems.files(options.out) if options.out else changeable(options.model, model, "-o OUT writes a copy with the ranges")
    )
    photos = _photos(Path(options.photos), options.count)
    used, held_back = _divided(len(photos))
    network = model.network
    report("calibrating", 0, 1)
    network.quantization = calibrated(network, [photos[i] for i in used])
    report("calibrating", 1, 1)
    int8, exact = (Predictor(network, Scoring(precision=precision), device="cpu") for precision in ("int8", "float32"))
    agreement = Agreement()
    for done, i in enumerate(held_back):
        report("comparing with float32", done, len(held_back))
        agreement.add(int8.labels([photos[i]])[0], exact.labels([photos[i]])[0])
    if agreement.mean < options.least:
        raise QuantizationError(
            f"{model.label}: int8 gives {agreement.mean:.2%} of float32's labels on {counted(agreement.photos, 'photo')} held "
            f"back; at least {options.least:.2%} is wanted: give photos that resemble those to segment, or lower --least"
        )
    entry: dict[str, Any] = {
        "photos": len(used),
        "held_back": agreement.photos,
        "labels_equal": round(agreement.mean, 5),
        "labels_equal_worst": round(agreement.worst, 5),
    }
    if options.dataset:
        entry["mean_iou"] = _compared(options, model, int8, exact, report)
    weights, _ = taken_apart(load_tensors(source[2]))  # as they are stored, bit by bit
    checkpoint.write(place, with_quantization(weights, network.quantization), {**model.card, "quantization": entry})
    label = checkpoint.parse(*read_model(options.out or options.model)).label
    return {"model": label, "was": model.label, "written": str(place), **entry}


def _divided(count: int) -> tuple[list[int], list[int]]:
    """Which of `count` photos give the ranges, evenly and at most MOST_PHOTOS and three quarters, and the others."""
    used = max(1, min(MOST_PHOTOS, count * 3 // 4))
    chosen = sorted({i * count // used for i in range(used)})
    return chosen, [i for i in range(count) if i not in chosen]


def _photos(folder: Path, count: int) -> list[np.ndarray]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if len(paths) < 2:
        accepted = f"two or more ({', '.join(EXTENSIONS[:6])}, ...) are needed, a few dozen are better"
        raise QuantizationError(f"{folder}: holds {counted(len(paths), 'photo')}; {accepted}")
    count = min(count, len(paths))
    photos = []
    for path in (paths[i * len(paths) // count] for i in range(count)):
        try:
            photos.append(decode(path.read_bytes()))
        except (ImageError, OSError) as error:
            raise QuantizationError(f"{path}: cannot be used: {error}") from error
    return photos


def _compared(
    options: QuantizeOptions, model: checkpoint.Model, int8: Predictor, exact: Predictor, report: Report
) -> dict[str, Any]:
    """mIoU in float32 and in int8 on a labelled split."""
    assert options.dataset
    data = open_dataset(options.dataset, options.split, options.layout)
    require_classes(data, model.classes.names, model.label)
    confusions = [Confusion.empty(len(model.classes)) for _ in range(2)]
    for index in range(len(data)):
        report("counting labels", index, len(data))
        image, labels = data[index]
        for predictor, confusion in zip((exact, int8), confusions, strict=True):
            confusion.add(labels, predictor.labels([image])[0])
    figures = [round(float(np.nanmean(confusion.iou())), 4) for confusion in confusions]
    return {"split": options.split, "images": len(data), "float32": figures[0], "int8": figures[1]}
