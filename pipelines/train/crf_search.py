"""The papers' search for a model's CRF parameters, in one process or on a Ray cluster, on scores that are computed once."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deeplab.crf import CRFParameters, DenseCRF
from deeplab.crf.search import BestParameters, coarse, search
from deeplab.data.datasets import LabelledFolder
from deeplab.devices import device_named
from deeplab.evaluation.metrics import Confusion
from deeplab.models import checkpoint
from deeplab.models.checkpoint import ModelError
from deeplab.placement import Placement
from deeplab.scoring.interface import AnyPredictor
from deeplab.scoring.model_predictor import predictor_of
from pipelines.options import TuneOptions
from pipelines.options.shared import CRFMode, short
from pipelines.storage.model_registry import changeable, read_model
from pipelines.train.packed_datasets import Packed, open_dataset
from pipelines.train.stored_masks import require_classes

Report = Callable[[str, int, int], None]
CANDIDATES_PER_TASK = 64  # a task refines one image for some seconds, which outweighs its overhead


@dataclass(frozen=True)
class SearchWork:
    """The input of all scoring tasks, sent once."""

    id: str
    options: TuneOptions
    model: tuple[Path, bytes, bytes]


@dataclass(frozen=True)
class ScoredImage:
    """One image with its scores, float16, and where they lie on it: the input of the CRF, about 1 MB."""

    image: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    placement: Placement


def tune(options: TuneOptions, report: Report = lambda phase, done, total: None) -> dict[str, Any]:
    """Search, write the winner into the model's card (if `write` is set), and return it JSON-ready.

    With one worker and no address it runs in this process, otherwise as Ray tasks: images are scored once and stay in the object
    store, then every candidate of a round refines every image. Raises ModelError (before the search if the card cannot be
    written), DatasetError, DeviceError, ClusterError.
    """
    if options.here:
        device_named(options.device)
    source = read_model(options.model)
    model = options.prepared(checkpoint.parse(*source))
    if model.stride == 1 and not options.here:
        raise ModelError(
            f"{model.label}: its scores, as large as the images, stay in one process: leave out --workers and --address"
        )
    place = changeable(options.model, model) if options.write else None
    data = open_dataset(options.dataset, options.split, options.layout)
    require_classes(data, model.classes.names, model.label)
    count = min(options.images, len(data))
    indices = [len(data) * k // count for k in range(count)]
    work = SearchWork(uuid.uuid4().hex, options, source)
    run = _here if options.here else _with_ray
    mean_iou_before, winner = run(work, indices, report)
    entry = {
        "parameters": asdict(winner.best),
        "mode": options.crf_mode,
        "mean_iou": winner.figure,
        "mean_iou_before": mean_iou_before,
        "searched_on": {
            "data": short(options.dataset),
            "split": data.split,
            "images": count,
            "scored": options.scored(model),
            "candidates": len(winner.tried),
        },
    }
    label = model.label
    if place is not None:
        try:
            label = f"{model.name}@{checkpoint.note(place, crf=entry)[:12]}"
        except ModelError as error:
            raise ModelError(f"{error}; the winner: {json.dumps(entry['parameters'])}") from error
    return {"model": label, "crf": winner.best.short(), **entry, "written": options.write}


def _here(work: SearchWork, indices: Sequence[int], report: Report) -> tuple[float, BestParameters]:
    plain, images = [], []
    for index in indices:
        confusion, scored = score(work, index)
        plain.append(confusion)
        images.append(scored)
        report("scoring", len(images), len(indices))

    def measure(todo: Sequence[CRFParameters]) -> list[float]:
        confusions = []
        for scored in images:
            confusions.append(refine((work.options.crf_mode, todo), scored))
            report(f"{len(todo)} parameters", len(confusions), len(images))
        return [_sum(column).mean_iou() for column in zip(*confusions, strict=True)]

    return _sum(plain).mean_iou(), search(measure, coarse(work.options.grid), work.options.rounds)


def _with_ray(work: SearchWork, indices: Sequence[int], report: Report) -> tuple[float, BestParameters]:
    from pipelines.cluster import connection
    from pipelines.cluster.parallel_map import results, spread

    options = work.options
    with connection.session(options.address, cpus=options.workers):
        pairs = spread(score, work, indices, options.device, returns=2)
        plain: list[Confusion] = []  # the scores stay where they were computed; only the counts come here
        for _, confusion in results([confusion for confusion, _ in pairs], options.start_timeout):
            plain.append(confusion)
            report("scoring", len(plain), len(pairs))

        def measure(todo: Sequence[CRFParameters]) -> list[float]:
            figures: list[float] = []
            for first in range(0, len(todo), CANDIDATES_PER_TASK):
                part = todo[first : first + CANDIDATES_PER_TASK]
                references = spread(refine, (options.crf_mode, part), [scored for _, scored in pairs])
                confusions: list[list[Confusion]] = []
                for _, of_image in results(references, options.start_timeout):
                    confusions.append(of_image)
                    report(f"{len(todo)} parameters", first * len(pairs) + len(confusions) * len(part), len(todo) * len(pairs))
                figures += [_sum(column).mean_iou() for column in zip(*confusions, strict=True)]
            return figures

        return _sum(plain).mean_iou(), search(measure, coarse(options.grid), options.rounds)


def _sum(confusions: Sequence[Confusion]) -> Confusion:
    return sum(confusions[1:], confusions[0])


_prepared: dict[str, tuple[AnyPredictor, LabelledFolder | Packed]] = {}


def score(work: SearchWork, index: int) -> tuple[Confusion, ScoredImage]:
    """Score image `index`, and count its labels without a CRF. The process keeps network and data set for the next image."""
    options = work.options
    if work.id not in _prepared:
        _prepared.clear()
        model = options.prepared(checkpoint.parse(*work.model))
        predictor = predictor_of(model, options.scoring(model), device=options.device)
        _prepared[work.id] = predictor, open_dataset(options.dataset, options.split, options.layout)
    predictor, data = _prepared[work.id]
    image, labels = data[index]
    scores = predictor.scores([image])[0].astype(np.float16)
    plain = Confusion.empty(len(data.classes))
    plain.add(labels, predictor.labels_of(scores, *labels.shape))
    return plain, ScoredImage(image, labels, scores, predictor.placement(scores, *labels.shape))


def refine(candidates: tuple[CRFMode, Sequence[CRFParameters]], scored: ScoredImage) -> list[Confusion]:
    """Refine one image with each of the parameters in this mode, and count."""
    mode, todo = candidates
    crf, confusions = DenseCRF(mode), []
    for parameters in todo:
        crf.parameters = parameters
        labels = crf.labels(scored.image, scored.scores, placement=scored.placement)
        confusion = Confusion.empty(len(scored.scores))
        confusion.add(scored.labels, labels)
        confusions.append(confusion)
    return confusions
