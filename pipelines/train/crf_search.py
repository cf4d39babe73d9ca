"""The papers' search for a model's CRF parameters, over one process or a Ray cluster, on scores that are computed once."""

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
from deeplab.scoring.predictor import Predictor, Scoring
from pipelines.options import TuneOptions
from pipelines.options.parts import short
from pipelines.storage.model_registry import changeable, read_model
from pipelines.train.packed_datasets import Packed, open_dataset
from pipelines.train.stored_masks import require_classes

Report = Callable[[str, int, int], None]
CANDIDATES_PER_TASK = 64  # some seconds of refining one image: enough to pay for the task


@dataclass(frozen=True)
class SearchWork:
    """What scoring needs; travels once."""

    id: str
    options: TuneOptions
    model: tuple[Path, bytes, bytes]


@dataclass(frozen=True)
class ScoredImage:
    """One image with what the CRF starts from: scores float16 at the network's stride, about 1 MB in all."""

    image: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    stride: int
    align_corners: bool


def tune(options: TuneOptions, report: Report = lambda phase, done, total: None) -> dict[str, Any]:
    """Search, write the winner into the model's card (where `write` is set), and return it JSON-ready.

    With one worker and no address it runs in this process, otherwise as Ray tasks: images are scored once and kept in
    the object store, then every candidate of a round refines every image. Raises ModelError (at once for a card that cannot
    be written), DatasetError, DeviceError, ClusterError.
    """
    if options.here:
        device_named(options.device)
    source = read_model(options.model)
    model = checkpoint.parse(*source)
    place = changeable(options.model, model) if options.write else None
    data = open_dataset(options.dataset, options.split, options.layout)
    require_classes(data, model.classes.names, model.label)
    count = min(options.images, len(data))
    indices = [len(data) * k // count for k in range(count)]
    work = SearchWork(uuid.uuid4().hex, options, source)
    run = _here if options.here else _with_ray
    before, found = run(work, indices, report)
    entry = {
        "parameters": asdict(found.best),
        "mode": options.crf_mode,
        "mean_iou": found.figure,
        "mean_iou_before": before,
        "searched_on": {
            "data": short(options.dataset),
            "split": data.split,
            "images": count,
            "scales": list(options.scales),
            "flip": options.flip,
            "candidates": len(found.tried),
        },
    }
    label = model.label
    if place is not None:
        try:
            label = f"{model.name}@{checkpoint.note(place, crf=entry)[:12]}"
        except ModelError as error:
            raise ModelError(f"{error}; what was found: {json.dumps(entry['parameters'])}") from error
    return {"model": label, "crf": found.best.short(), **entry, "written": options.write}


def _here(work: SearchWork, indices: Sequence[int], report: Report) -> tuple[float, BestParameters]:
    plain, kept = [], []
    for index in indices:
        counted, scored = score(work, index)
        plain.append(counted)
        kept.append(scored)
        report("scoring", len(kept), len(indices))

    def measure(todo: Sequence[CRFParameters]) -> list[float]:
        counted = []
        for scored in kept:
            counted.append(refine((work.options.crf_mode, todo), scored))
            report(f"{len(todo)} parameters", len(counted), len(kept))
        return [_sum(column).mean_iou() for column in zip(*counted, strict=True)]

    return _sum(plain).mean_iou(), search(measure, coarse(work.options.grid), work.options.rounds)


def _with_ray(work: SearchWork, indices: Sequence[int], report: Report) -> tuple[float, BestParameters]:
    from pipelines.cluster import connection
    from pipelines.cluster.parallel_map import results, spread

    options = work.options
    with connection.session(options.address, cpus=options.workers):
        pairs = spread(score, work, indices, options.device, returns=2)
        plain = []  # the scores stay where they were computed; only the counts come here
        for _, found in results([counted for counted, _ in pairs], options.start_timeout):
            plain.append(found)
            report("scoring", len(plain), len(pairs))

        def measure(todo: Sequence[CRFParameters]) -> list[float]:
            figures: list[float] = []
            for first in range(0, len(todo), CANDIDATES_PER_TASK):
                part = todo[first : first + CANDIDATES_PER_TASK]
                references = spread(refine, (options.crf_mode, part), [scored for _, scored in pairs])
                counted = []
                for _, found in results(references, options.start_timeout):
                    counted.append(found)
                    report(f"{len(todo)} parameters", first * len(pairs) + len(counted) * len(part), len(todo) * len(pairs))
                figures += [_sum(column).mean_iou() for column in zip(*counted, strict=True)]
            return figures

        return _sum(plain).mean_iou(), search(measure, coarse(options.grid), options.rounds)


def _sum(counted: Sequence[Confusion]) -> Confusion:
    return sum(counted[1:], counted[0])


_prepared: dict[str, tuple[Predictor, LabelledFolder | Packed]] = {}


def score(work: SearchWork, index: int) -> tuple[Confusion, ScoredImage]:
    """Image `index` scored and, without a CRF, counted. The process keeps network and data set for the next one."""
    options = work.options
    if work.id not in _prepared:
        _prepared.clear()
        network = checkpoint.parse(*work.model).network
        predictor = Predictor(network, options.of_kind(Scoring), device=options.device)
        _prepared[work.id] = predictor, open_dataset(options.dataset, options.split, options.layout)
    predictor, data = _prepared[work.id]
    image, labels = data[index]
    scores = predictor.scores([image])[0]
    plain = Confusion.empty(len(data.classes))
    plain.add(labels, predictor.labels_of(scores, *labels.shape))
    return plain, ScoredImage(image, labels, scores, predictor.network.stride, predictor.network.align_corners)


def refine(how: tuple[Any, Sequence[CRFParameters]], scored: ScoredImage) -> list[Confusion]:
    """One image refined with each of the parameters, and counted."""
    mode, candidates = how
    crf, counted = DenseCRF(mode), []
    for parameters in candidates:
        crf.parameters = parameters
        found = crf.labels(scored.image, scores=scored.scores, stride=scored.stride, align_corners=scored.align_corners)
        confusion = Confusion.empty(len(scored.scores))
        confusion.add(scored.labels, found)
        counted.append(confusion)
    return counted
