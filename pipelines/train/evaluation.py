"""Evaluation in one process or on a Ray cluster: a model, or the masks of a results table, against labels."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeplab.crf import DenseCRF
from deeplab.data.datasets import LabelledFolder
from deeplab.data.inspection import inspect
from deeplab.data.layouts import DatasetError
from deeplab.devices import device_named
from deeplab.evaluation.predictions import Evaluation, predict
from deeplab.models import checkpoint
from deeplab.scoring.interface import AnyPredictor
from deeplab.scoring.model_predictor import predictor_of
from pipelines.options import EvaluateOptions
from pipelines.options.shared import RefinementOptions
from pipelines.storage.model_registry import read_model
from pipelines.table.table_errors import ResultsError
from pipelines.train.packed_datasets import Packed, open_dataset
from pipelines.train.stored_masks import StoredMasks, is_table, require_classes

IMAGES_PER_TASK = 16  # seconds of work on a CPU, which is all that a lost task costs
ROWS_PER_TASK = 256  # masks, which are only read and counted
MASK_OPTIONS = tuple(RefinementOptions.model_fields)  # options that change a mask


@dataclass(frozen=True)
class EvaluationWork:
    """The input of all shares, sent once. One of `model` and `masks` is None."""

    id: str
    options: EvaluateOptions
    model: tuple[Path, bytes, bytes] | None
    masks: StoredMasks | None
    skipped: list[str]


def evaluate(options: EvaluateOptions, report: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Figures on a split, JSON-ready: model, images, `Evaluation.summary`, and the settings of the masks.

    With one worker and no address it runs in this process, otherwise as Ray tasks, which are repeated if a worker or node dies.
    With a results table, images with an error row count as missed in every pixel (`without_mask`); an image without a row is
    refused. Raises ModelError, ResultsError, DatasetError, DeviceError, ClusterError.
    """
    of_table = is_table(options.model)
    _require_fitting(options, of_table)
    if options.here and not of_table:
        device_named(options.device)
    data = open_dataset(options.dataset, options.split, options.layout)
    skipped = list(inspect(data).broken) if options.skip_broken else []
    data = data.without(skipped) if skipped else data
    settings: dict[str, object] = {"dataset": options.dataset, "split": options.split, "images": len(data)}
    if skipped:
        settings["skipped"] = skipped
    if of_table:
        masks = StoredMasks.of(options.model, options.rows_of, data)
        work = EvaluationWork(uuid.uuid4().hex, options, None, masks, skipped)
        label, names = masks.label, masks.classes
        settings |= {"results": options.model, "scored": masks.scored, "crf": masks.refined, "without_mask": masks.missing}
    else:
        source = read_model(options.model)
        model = options.prepared(checkpoint.parse(*source))
        work = EvaluationWork(uuid.uuid4().hex, options, source, None, skipped)
        label, names = model.label, list(model.classes.names)
        require_classes(data, names, label)
        crf = _engine(options, model)
        settings |= {"scored": options.scored(model), "crf": crf.short() if crf else None}
    result = Evaluation.empty(len(names), options.trimap, work.masks is None and options.crf)
    size = ROWS_PER_TASK if work.masks else IMAGES_PER_TASK
    size = max(1, min(size, len(data) // (4 * options.workers)))
    shares = [range(first, min(first + size, len(data))) for first in range(0, len(data), size)]
    done = 0
    if options.here:
        for indices in shares:
            result += share(work, indices)
            done += len(indices)
            report(done, len(data))
    else:
        from pipelines.cluster import connection
        from pipelines.cluster.parallel_map import results, spread

        with connection.session(options.address, cpus=options.workers):
            references = spread(share, work, shares, options.device if work.model else "cpu")
            for index, of_share in results(references, options.start_timeout):
                result += of_share
                done += len(shares[index])
                report(done, len(data))
    return {"model": label, **settings, **result.summary(names)}


def _require_fitting(options: EvaluateOptions, of_table: bool) -> None:
    """ResultsError for options without effect: the masks of a table exist already, and a model has no rows."""
    if not of_table:
        if options.rows_of is not None:
            raise ResultsError(f"{options.model}: not a results table; --rows-of names a model of one")
        return
    useless = [name for name in MASK_OPTIONS if getattr(options, name) != EvaluateOptions.model_fields[name].default]
    if useless:
        flags = ", ".join("--" + name.replace("_", "-") for name in useless)
        raise ResultsError(f"{options.model}: a results table, whose masks exist already; {flags} are for a model")


_prepared: dict[str, tuple[LabelledFolder | Packed, AnyPredictor | None, DenseCRF | None]] = {}


def share(work: EvaluationWork, indices: Sequence[int]) -> Evaluation:
    """Evaluate the images of these indices. A process keeps data set, network and CRF for its next share."""
    options = work.options
    if work.id not in _prepared:
        _prepared.clear()
        model = options.prepared(checkpoint.parse(*work.model)) if work.model else None
        data = open_dataset(options.dataset, options.split, options.layout)
        data = data.without(work.skipped) if work.skipped else data
        _prepared[work.id] = data, _predictor(options, model) if model else None, _engine(options, model) if model else None
    data, predictor, crf = _prepared[work.id]
    result = Evaluation.empty(len(data.classes), options.trimap, crf is not None)
    masks = work.masks.read(indices) if work.masks else {}
    for index in indices:
        image, labels = data[index]
        if predictor is not None:
            result.add(labels, *predict(predictor, image, crf))
            continue
        mask = masks.get(index)
        if mask is not None and mask.shape != labels.shape:
            raise DatasetError(f"{data.stems[index]}: labels are {labels.shape}, the mask in the table is {mask.shape}")
        result.add(labels, mask)
    return result


def _predictor(options: EvaluateOptions, model: checkpoint.Model) -> AnyPredictor:
    return predictor_of(model, options.scoring(model), device=options.device)


def _engine(options: EvaluateOptions, model: checkpoint.Model) -> DenseCRF | None:
    refinement = options.refinement(model, options.device)
    return refinement.engine() if refinement else None
