"""What happens to a block of images inside Ray.

On CPUs one task does all of it (`whole`): read, decode, score, refine, encode. With GPUs the actors that hold them stop at
the scores (`Score`), and tasks on any CPU go on from there (`refine`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deeplab import checkpoint, masks
from deeplab.classes import ClassTable
from deeplab.images import decode
from deeplab.multiscale import winning_classes
from pipelines.custody import Custody, given_up
from pipelines.loading import Loaded, Loader
from pipelines.results import FILE_SCHEMA

SCORED = pa.schema(
    [
        ("uri", pa.string()),
        ("version", pa.string()),
        ("error", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("encoded", pa.large_binary()),
        ("scores", pa.large_binary()),  # float16, C x h x w at the network's stride
        ("grid", pa.list_(pa.int32(), 3)),
        ("confidence", pa.float32()),
    ]
)


@dataclass(frozen=True)
class Scored:
    """One image after the network, or the error that kept it from there (then all that follows it is None)."""

    uri: str
    version: str
    error: str | None = None
    size: tuple[int, int] | None = None  # height, width
    pixels: np.ndarray | None = None
    encoded: bytes | None = None
    scores: np.ndarray | None = None  # float16, C x h x w at the network's stride
    confidence: float | None = None


# (stage, first uri of the block) -> images, errors, seconds; a repeated block reports under the same key.
Report = Callable[[str, str, int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Task:
    """What every stage needs to know of the run; small, and picklable to any node."""

    classes: ClassTable
    stride: int
    align_corners: bool
    predictor: dict[str, Any]
    crf: dict[str, Any] | None
    max_pixels: int
    run: str
    threads: int


class Scorer:
    """The network and what feeds it."""

    def __init__(self, model: Any, task: Task) -> None:
        """`model`: an object reference to what `checkpoint.read` returned, so that no node needs the folder."""
        import ray
        import torch

        from deeplab.predictor import Predictor

        if not torch.cuda.is_available():
            torch.set_num_threads(task.threads)
        self.predictor = Predictor(checkpoint.parse(*ray.get(model)).network, **task.predictor)
        self.loader = Loader(task.max_pixels)

    def windows(self, block: pa.Table, report: Report, register: Any) -> Iterator[list[Scored]]:
        """The block's images in groups, scored; first, one by one, those whose process died at the last attempt."""
        images = list(zip(block["uri"].to_pylist(), block["version"].to_pylist(), strict=True))
        name, custody = images[0][0], Custody(register, "score")
        suspects = custody.begin(name)

        def scored(some: list[tuple[str, str]]) -> Iterator[list[Scored]]:
            for window in self.loader.windows(some, lambda uris: custody.hold(name, uris)):
                yield self._score(window, report)

        try:
            for uri, version in sorted(images, key=lambda image: -suspects.get(image[0], -1))[: len(suspects)]:
                if error := given_up(suspects[uri]):
                    yield [Scored(uri, version, error)]
                else:
                    yield from scored([(uri, version)])
            yield from scored([image for image in images if image[0] not in suspects])
        finally:
            custody.end(name)

    def _score(self, window: list[Loaded], report: Report) -> list[Scored]:
        start = time.perf_counter()
        scores = iter(self.predictor.scores([image.pixels for image in window if image.pixels is not None]))
        images = []
        for image in window:
            if image.pixels is None:
                images.append(Scored(image.uri, image.version, image.error))
            else:
                found = next(scores)
                size = image.pixels.shape[:2]
                images.append(Scored(image.uri, image.version, None, size, image.pixels, image.encoded, found, confidence(found)))
        seconds = {"read": sum(image.read_seconds for image in window), "decode": sum(image.decode_seconds for image in window)}
        report("score", window[0].uri, 0, 0, {**seconds, "score": time.perf_counter() - start})
        return images


# A process keeps its network from block to block and from chunk to chunk; a run with other settings brings its own.
_scorers: dict[str, Scorer] = {}


def whole(block: pa.Table, model: Any, task: Task, report: Report, register: Any) -> Iterator[pa.Table]:
    """The task that does all of an image's way on one core: a block of (uri, version) -> rows of the results table.

    Nothing but names and finished rows goes through the object store, and no image is decoded twice.
    """
    key = f"{model.hex()} {task}"
    if key not in _scorers:
        _scorers.clear()
        _scorers[key] = Scorer(model, task)
    for images in _scorers[key].windows(block, report, register):
        yield refined(images, task, report)


class Score:
    """The actor that holds a GPU: a block of (uri, version) -> encoded bytes and stride-8 scores, or the error of each image."""

    def __init__(self, model: Any, task: Task, report: Report, register: Any) -> None:
        """`model`, `task`: as Scorer's. `register`: the actor of custody.Register."""
        self.scorer, self.report, self.register = Scorer(model, task), report, register

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for images in self.scorer.windows(block, self.report, self.register):
            yield pa.Table.from_pylist([to_row(image) for image in images], schema=SCORED)


def to_row(image: Scored) -> dict[str, Any]:
    """A row of SCORED; pixels stay behind, as the encoded bytes are a tenth of them."""
    row: dict[str, Any] = {"uri": image.uri, "version": image.version, "error": image.error}
    if image.size is not None and image.scores is not None:
        row |= {"height": image.size[0], "width": image.size[1], "encoded": image.encoded}
        row |= {"scores": image.scores.tobytes(), "grid": list(image.scores.shape), "confidence": image.confidence}
    return row


def confidence(scores: np.ndarray) -> float:
    """Mean probability of the winning class over the score positions (before any refinement); scores: C x h x w."""
    shifted = scores.astype(np.float32)
    shifted -= shifted.max(0)
    return float((1.0 / np.exp(shifted).sum(0)).mean())


@lru_cache(maxsize=2)
def _engine(parameters: tuple[tuple[str, Any], ...]) -> Any:
    """The CRF with its buffers, one per process."""
    from deeplab.crf import DenseCRF

    return DenseCRF(**dict(parameters))


def refine(block: pa.Table, task: Task, report: Report, register: Any) -> pa.Table:
    """The refining task: a block of SCORED -> rows of the results table."""
    if not block.num_rows:
        return FILE_SCHEMA.empty_table()
    custody = Custody(register, "refine")
    name = block["uri"][0].as_py()
    suspects = custody.begin(name)

    def image(row: dict[str, Any]) -> Scored:
        uri, error = row["uri"], row["error"]
        if uri in suspects:
            error = error or given_up(suspects[uri])
            custody.hold(name, [uri])
        if error is not None:
            return Scored(uri, row["version"], error)
        scores = np.frombuffer(row["scores"], np.float16).reshape(row["grid"])
        pixels = decode(row["encoded"], task.max_pixels) if task.crf is not None else None
        return Scored(uri, row["version"], None, (row["height"], row["width"]), pixels, None, scores, row["confidence"])

    try:
        parts = []
        sound = block.filter(pa.array([uri not in suspects for uri in block["uri"].to_pylist()]))
        for uri in sorted(suspects, key=lambda uri: -suspects[uri]):
            parts.append(refined(map(image, block.filter(pc.equal(block["uri"], uri)).to_pylist()), task, report))
        custody.hold(name, sound["uri"].to_pylist())
        parts.append(refined(map(image, sound.to_pylist()), task, report))
        return pa.concat_tables(parts)
    finally:
        custody.end(name)


def refined(images: Iterable[Scored], task: Task, report: Report) -> pa.Table:
    """Scores to full size, dense CRF, the winning class, PNG: rows of the results table, one per image."""
    classes, stride, align_corners = task.classes, task.stride, task.align_corners
    crf = _engine(tuple(task.crf.items())) if task.crf is not None else None
    seconds = {"refine": 0.0, "encode": 0.0}
    rows = []
    start = time.perf_counter()
    for image in images:
        row: dict[str, Any] = {"uri": image.uri, "version": image.version, "run": task.run, "segmented_at": datetime.now(UTC)}
        if image.size is None or image.scores is None:
            rows.append({**row, "status": "error", "error": image.error})
            continue
        height, width = image.size
        if crf is None:
            labels = winning_classes(image.scores, height, width, stride, align_corners)
        else:
            labels = crf.labels(image.pixels, scores=image.scores, stride=stride, align_corners=align_corners)
        middle = time.perf_counter()
        row |= {"status": "ok", "height": height, "width": width, "mask": masks.encode_png(labels, classes)}
        row |= {"class_pixels": list(masks.class_pixels(labels, classes).items()), "confidence": image.confidence}
        rows.append({**row, "refined": crf.short() if crf is not None else None})
        seconds["refine"] += middle - start
        start = time.perf_counter()
        seconds["encode"] += start - middle
    if rows:
        report("refine", rows[0]["uri"], len(rows), sum(row["status"] != "ok" for row in rows), seconds)
    return pa.Table.from_pylist(rows, schema=FILE_SCHEMA)
