"""What happens to a block of images inside Ray.

On CPUs one task does all of it (`whole`): read, decode, score, refine, encode. With GPUs the actors that hold them stop at
the scores (`Score`), and tasks on any CPU go on from there (`refine`), unless the GPUs are faster at that, too
(`pipelines.refining`). A large image has all of its way where it is scored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from deeplab import checkpoint, masks
from deeplab.classes import ClassTable
from deeplab.images import MAX_PIXELS, ImageError, decode
from deeplab.multiscale import confidence, winning_classes
from pipelines.custody import Custody, given_up
from pipelines.large import segment_large
from pipelines.loading import Loaded, Loader
from pipelines.refining import on_device
from pipelines.results import FILE_SCHEMA

# What the CRF sees around each window of a large image. With it, the labels of a mosaic of photos differ from those of the
# CRF over the whole as much as these do when the image is cropped by 8 pixels: 0.04 % of pixels (the CRF changes 1.7 %).
MARGIN = 64
# What is known of an image that had its whole way already.
FINISHED = pa.struct([FILE_SCHEMA.field(name) for name in ("height", "width", "mask", "class_pixels", "confidence")])
SCORED = pa.schema(
    [
        ("uri", pa.string()),
        ("version", pa.string()),
        ("read_version", pa.string()),
        ("error", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("encoded", pa.large_binary()),
        ("scores", pa.large_binary()),  # float16, C x h x w at the network's stride
        ("grid", pa.list_(pa.int32(), 3)),
        ("confidence", pa.float32()),
        ("finished", FINISHED),
    ]
)


@dataclass(frozen=True)
class Scored:
    """One image after the network; or all that there is to know of it; or the error (then all that follows is None)."""

    uri: str
    version: str
    error: str | None = None
    size: tuple[int, int] | None = None  # height, width
    pixels: np.ndarray | None = None
    encoded: bytes | None = None
    scores: np.ndarray | None = None  # float16, C x h x w at the network's stride
    confidence: float | None = None
    finished: dict[str, Any] | None = None  # columns of the results table, and nothing else here
    read_version: str | None = None  # of the bytes, where it is not the listed one


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
    large_pixels: int = MAX_PIXELS  # images above it are never decoded whole
    crf_on_scorer: bool = False  # the CRF has its turn on the GPU that scores


class Scorer:
    """The network and what feeds it."""

    def __init__(self, model: Any, task: Task) -> None:
        """`model`: an object reference to what `checkpoint.read` returned, so that no node needs the folder."""
        import ray

        from deeplab.predictor import Predictor

        if not torch.cuda.is_available():
            torch.set_num_threads(task.threads)
        self.predictor = Predictor(checkpoint.parse(*ray.get(model)).network, **task.predictor)
        self.task = task
        self.loader = Loader(task.max_pixels, task.large_pixels)

    def windows(self, block: pa.Table, report: Report, register: Any) -> Iterator[list[Scored]]:
        """The block's images in groups, scored; first, one by one, those whose process died at the last attempt."""
        images = list(zip(*block.select(["uri", "version", "bytes"]).to_pydict().values(), strict=True))
        name, custody = images[0][0], Custody(register, "score")
        suspects = custody.begin(name)

        def scored(some: list[tuple[str, str, int]]) -> Iterator[list[Scored]]:
            for window in self.loader.windows(some, lambda uris: custody.hold(name, uris)):
                done = self._score(window, report)
                window.clear()  # a large image's bytes are not held while the next one's are read
                yield done

        try:
            for uri, version, size in sorted(images, key=lambda image: -suspects.get(image[0], -1))[: len(suspects)]:
                if error := given_up(suspects[uri]):
                    yield [Scored(uri, version, error)]
                else:
                    yield from scored([(uri, version, size)])
            yield from scored([image for image in images if image[0] not in suspects])
        finally:
            custody.end(name)

    def _score(self, window: list[Loaded], report: Report) -> list[Scored]:
        start = time.perf_counter()
        scores = iter(self.predictor.scores([image.pixels for image in window if image.pixels is not None]))
        images = []
        for image in window:
            if image.error is not None:
                images.append(Scored(image.uri, image.version, image.error))
            elif image.pixels is None:
                images.append(self._large(image))
            else:
                found = next(scores)
                size = image.pixels.shape[:2]
                images.append(Scored(image.uri, image.version, None, size, image.pixels, image.encoded, found, confidence(found)))
        seconds = {"read": sum(image.read_seconds for image in window), "decode": sum(image.decode_seconds for image in window)}
        stage = "large" if any(image.finished for image in images) else "score"
        scored = time.perf_counter()
        seconds[stage] = scored - start
        if self.task.crf_on_scorer:
            images = [self._finish(image) for image in images]
            seconds["refine_gpu"] = time.perf_counter() - scored
        report("score", window[0].uri, 0, 0, seconds)
        return [replace(image, read_version=loaded.read_version) for image, loaded in zip(images, window, strict=True)]

    def _finish(self, image: Scored) -> Scored:
        """The rest of an image's way, here on the GPU; what is finished, or an error, stays as it is."""
        if image.size is None or image.scores is None:
            return image
        labels = labelled(self.task, image.size, image.pixels, image.scores)
        return Scored(image.uri, image.version, finished={**_columns(labels, self.task.classes), "confidence": image.confidence})

    def _large(self, image: Loaded) -> Scored:
        """All of the image's way, here and now: neither its pixels nor its scores are ever held whole."""
        assert image.header is not None

        def label(pixels: np.ndarray, scores: np.ndarray) -> np.ndarray:
            return labelled(self.task, pixels.shape[:2], pixels, scores)

        try:
            margin = MARGIN if self.task.crf is not None else self.task.stride
            finished = segment_large(image.encoded, image.header, self.predictor, label, margin, self.task.classes)
            return Scored(image.uri, image.version, finished=finished)
        except ImageError as reason:
            return Scored(image.uri, image.version, f"decode: {reason}")


# A process keeps its network from block to block and from chunk to chunk; a run with other settings brings its own.
_scorers: dict[str, Scorer] = {}


def whole(block: pa.Table, model: Any, task: Task, report: Report, register: Any) -> Iterator[pa.Table]:
    """The task that does all of an image's way on one core: a block of (uri, version, bytes) -> rows of the results table.

    Nothing but names and finished rows goes through the object store, and no image is decoded twice.
    """
    key = f"{model.hex()} {task}"
    if key not in _scorers:
        _scorers.clear()
        _scorers[key] = Scorer(model, task)
    for images in _scorers[key].windows(block, report, register):
        yield refined(images, task, report)


class Score:
    """The actor that holds a GPU: (uri, version, bytes) -> encoded bytes and stride-8 scores, or the error of each image."""

    def __init__(self, model: Any, task: Task, report: Report, register: Any) -> None:
        """`model`, `task`: as Scorer's. `register`: the actor of custody.Register."""
        self.scorer, self.report, self.register = Scorer(model, task), report, register

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for images in self.scorer.windows(block, self.report, self.register):
            yield pa.Table.from_pylist([to_row(image) for image in images], schema=SCORED)


def to_row(image: Scored) -> dict[str, Any]:
    """A row of SCORED; pixels stay behind, as the encoded bytes are a tenth of them."""
    row: dict[str, Any] = {"uri": image.uri, "version": image.version, "read_version": image.read_version}
    row |= {"error": image.error, "finished": image.finished}
    if image.size is not None and image.scores is not None:
        row |= {"height": image.size[0], "width": image.size[1], "encoded": image.encoded}
        row |= {"scores": image.scores.tobytes(), "grid": list(image.scores.shape), "confidence": image.confidence}
    return row


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
        if error is not None or row["finished"] is not None:
            return Scored(uri, row["version"], error, finished=row["finished"], read_version=row["read_version"])
        scores = np.frombuffer(row["scores"], np.float16).reshape(row["grid"])
        pixels = decode(row["encoded"], task.max_pixels) if task.crf is not None else None
        size = row["height"], row["width"]
        return Scored(uri, row["version"], None, size, pixels, None, scores, row["confidence"], read_version=row["read_version"])

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


def labelled(task: Task, size: tuple[int, int], pixels: np.ndarray | None, scores: np.ndarray) -> np.ndarray:
    """Scores to full size, dense CRF (which alone needs the pixels), the winning class: labels, height x width."""
    if task.crf is None:
        return winning_classes(scores, *size, task.stride, task.align_corners)
    geometry = {"stride": task.stride, "align_corners": task.align_corners}
    try:
        return _crf(task).labels(pixels, scores=scores, **geometry)
    except torch.OutOfMemoryError:  # a large image on a small GPU
        exact = _engine(tuple({**task.crf, "mode": "exact", "backend": "native"}.items()))
        return exact.labels(pixels, scores=scores, **geometry)


def _crf(task: Task) -> Any:
    """The task's CRF, one object with its buffers in each process."""
    assert task.crf is not None
    return _engine(tuple((on_device(task.crf) if task.crf_on_scorer else task.crf).items()))


def _columns(labels: np.ndarray, classes: ClassTable) -> dict[str, Any]:
    """What the results table has of a label map."""
    counts = list(masks.class_pixels(labels, classes).items())
    return {"height": labels.shape[0], "width": labels.shape[1], "mask": masks.encode_png(labels, classes), "class_pixels": counts}


def refined(images: Iterable[Scored], task: Task, report: Report) -> pa.Table:
    """Labels and their PNG: rows of the results table, one per image."""
    classes = task.classes
    short = _crf(task).short() if task.crf is not None else None
    seconds = {"refine": 0.0, "encode": 0.0}
    rows = []
    start = time.perf_counter()
    for image in images:
        row: dict[str, Any] = {"uri": image.uri, "version": image.version, "read_version": image.read_version}
        row |= {"run": task.run, "segmented_at": datetime.now(UTC)}
        if image.finished is not None:
            rows.append({**row, "status": "ok", **image.finished, "refined": short})
            continue
        if image.size is None or image.scores is None:
            rows.append({**row, "status": "error", "error": image.error})
            continue
        labels = labelled(task, image.size, image.pixels, image.scores)
        middle = time.perf_counter()
        rows.append({**row, "status": "ok", **_columns(labels, classes), "confidence": image.confidence, "refined": short})
        seconds["refine"] += middle - start
        start = time.perf_counter()
        seconds["encode"] += start - middle
    if rows:
        report("refine", rows[0]["uri"], len(rows), sum(row["status"] != "ok" for row in rows), seconds)
    return pa.Table.from_pylist(rows, schema=FILE_SCHEMA)
