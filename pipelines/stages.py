"""What happens to a block of images inside Ray.

On CPUs one actor per core does all of it (`Segment`): read, decode, score, refine, encode. With GPUs the actors that hold
them stop at the scores (`Score`), and tasks on any CPU go on from there (`refine`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from deeplab import checkpoint, masks
from deeplab.classes import ClassTable
from deeplab.images import ImageError, decode
from deeplab.multiscale import winning_classes
from pipelines import shards
from pipelines.results import FILE_SCHEMA

READ_THREADS = 8
READ_TRIES = 4
# Images decoded ahead of the network: enough to fill its batches, few enough to bound an actor's memory.
WINDOW = 16

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


def read(uri: str, expected: str) -> tuple[bytes, str, str | None]:
    """(bytes, version of those bytes, reason why not). A place that is gone or barred is a reason; all else raises.

    Other errors are the system's (a store that is down): they are tried again and then fail the block, so that an
    outage never turns into rows.
    """
    for attempt in range(READ_TRIES):
        try:
            return *shards.fetch(uri, expected), None
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
            return b"", expected, f"read: {error.strerror or 'no such object'}"
        except OSError:
            if attempt == READ_TRIES - 1:
                raise
            time.sleep(0.5 * 4**attempt)
    raise AssertionError("unreachable")


class Score:
    """The scoring actor: a block of (uri, version) -> encoded bytes and stride-8 scores, or the error of each image.

    Files are read and decoded by threads one window ahead of the network, so neither waits for the other.
    """

    def __init__(self, model: Any, task: Task, report: Report) -> None:
        """`model`: an object reference to what `checkpoint.read` returned, so that no node needs the folder."""
        import ray
        import torch

        from deeplab.predictor import Predictor

        if not torch.cuda.is_available():
            torch.set_num_threads(task.threads)
        self.task, self.report = task, report
        self.predictor = Predictor(checkpoint.parse(*ray.get(model)).network, **task.predictor)
        self.readers = ThreadPoolExecutor(READ_THREADS)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for images in self.windows(block):
            yield pa.Table.from_pylist([to_row(image) for image in images], schema=SCORED)

    def windows(self, block: pa.Table) -> Iterator[list[Scored]]:
        uris, versions = block["uri"].to_pylist(), block["version"].to_pylist()
        windows = [range(start, min(start + WINDOW, len(uris))) for start in range(0, len(uris), WINDOW)]
        pending = [self.readers.submit(self._load, uris[i], versions[i]) for i in windows[0]] if windows else []
        for number in range(len(windows)):
            loaded = [future.result() for future in pending]
            following = windows[number + 1] if number + 1 < len(windows) else range(0)
            pending = [self.readers.submit(self._load, uris[i], versions[i]) for i in following]
            yield self._score(loaded)

    def _load(self, uri: str, expected: str) -> tuple[Scored, float, float]:
        """The image without scores, seconds of reading, seconds of decoding."""
        start = time.perf_counter()
        encoded, version, error = read(uri, expected)
        middle = time.perf_counter()
        image = Scored(uri, version, error)
        if error is None:
            try:
                pixels = decode(encoded, self.task.max_pixels)
                image = Scored(uri, version, None, pixels.shape[:2], pixels, encoded)
            except ImageError as reason:
                image = Scored(uri, version, f"decode: {reason}")
        return image, middle - start, time.perf_counter() - middle

    def _score(self, loaded: list[tuple[Scored, float, float]]) -> list[Scored]:
        start = time.perf_counter()
        images = [image for image, _, _ in loaded]
        good = [(index, image.pixels) for index, image in enumerate(images) if image.pixels is not None]
        for (index, _), scores in zip(good, self.predictor.scores([pixels for _, pixels in good]), strict=True):
            images[index] = replace(images[index], scores=scores, confidence=confidence(scores))
        seconds = {"read": sum(item[1] for item in loaded), "decode": sum(item[2] for item in loaded)}
        self.report("score", images[0].uri, 0, 0, {**seconds, "score": time.perf_counter() - start})
        return images


class Segment(Score):
    """The actor that does all of an image's way on one core: a block of (uri, version) -> rows of the results table.

    Nothing but names and finished rows goes through the object store, and no image is decoded twice.
    """

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for images in self.windows(block):
            yield refined(images, self.task, self.report)


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


def refine(block: pa.Table, task: Task, report: Report) -> pa.Table:
    """The refining task: a block of SCORED -> rows of the results table."""

    def image(row: dict[str, Any]) -> Scored:
        if row["error"] is not None:
            return Scored(row["uri"], row["version"], row["error"])
        scores = np.frombuffer(row["scores"], np.float16).reshape(row["grid"])
        pixels = decode(row["encoded"], task.max_pixels) if task.crf is not None else None
        return Scored(row["uri"], row["version"], None, (row["height"], row["width"]), pixels, None, scores, row["confidence"])

    return refined((image(row) for row in block.to_pylist()), task, report)


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
