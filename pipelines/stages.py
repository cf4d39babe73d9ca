"""What happens to a block of images inside Ray: read, decode and score in actors; refine and encode in tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
        uris, versions = block["uri"].to_pylist(), block["version"].to_pylist()
        windows = [range(start, min(start + WINDOW, len(uris))) for start in range(0, len(uris), WINDOW)]
        pending = [self.readers.submit(self._load, uris[i], versions[i]) for i in windows[0]] if windows else []
        for number, window in enumerate(windows):
            loaded = [future.result() for future in pending]
            following = windows[number + 1] if number + 1 < len(windows) else range(0)
            pending = [self.readers.submit(self._load, uris[i], versions[i]) for i in following]
            yield self._score([uris[i] for i in window], loaded)

    def _load(self, uri: str, expected: str) -> tuple[bytes, str, np.ndarray | None, str | None, float, float]:
        """encoded bytes, their version, pixels, error, seconds of reading, seconds of decoding."""
        start = time.perf_counter()
        encoded, version, error = read(uri, expected)
        middle = time.perf_counter()
        pixels = None
        if error is None:
            try:
                pixels = decode(encoded, self.task.max_pixels)
            except ImageError as reason:
                error = f"decode: {reason}"
        return encoded, version, pixels, error, middle - start, time.perf_counter() - middle

    def _score(self, uris: list[str], loaded: list[tuple[Any, ...]]) -> pa.Table:
        start = time.perf_counter()
        good = [index for index, item in enumerate(loaded) if item[2] is not None]
        scores = dict(zip(good, self.predictor.scores([loaded[index][2] for index in good]), strict=True))
        rows = []
        for index, (uri, (encoded, version, pixels, error, _, _)) in enumerate(zip(uris, loaded, strict=True)):
            row: dict[str, Any] = {"uri": uri, "version": version, "error": error}
            if pixels is not None:
                found = scores[index]
                row |= {"height": pixels.shape[0], "width": pixels.shape[1], "encoded": encoded, "scores": found.tobytes()}
                row |= {"grid": list(found.shape), "confidence": confidence(found)}
            rows.append(row)
        seconds = {
            "read": sum(item[4] for item in loaded),
            "decode": sum(item[5] for item in loaded),
            "score": time.perf_counter() - start,
        }
        self.report("score", uris[0], 0, 0, seconds)
        return pa.Table.from_pylist(rows, schema=SCORED)


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
    """The refining task: scores to full size, dense CRF, the winning class, PNG; rows of the results table."""
    if not block.num_rows:
        return FILE_SCHEMA.empty_table()
    classes, stride, align_corners = task.classes, task.stride, task.align_corners
    crf = _engine(tuple(task.crf.items())) if task.crf is not None else None
    seconds = {"refine": 0.0, "encode": 0.0}
    rows = []
    for item in block.to_pylist():
        row: dict[str, Any] = {"uri": item["uri"], "version": item["version"], "run": task.run, "segmented_at": datetime.now(UTC)}
        if item["error"] is not None:
            rows.append({**row, "status": "error", "error": item["error"]})
            continue
        height, width = item["height"], item["width"]
        scores = np.frombuffer(item["scores"], np.float16).reshape(item["grid"])
        start = time.perf_counter()
        if crf is None:
            labels = winning_classes(scores, height, width, stride, align_corners)
        else:
            image = decode(item["encoded"], task.max_pixels)
            labels = crf.labels(image, scores=scores, stride=stride, align_corners=align_corners)
        middle = time.perf_counter()
        row |= {"status": "ok", "height": height, "width": width, "mask": masks.encode_png(labels, classes)}
        row |= {"class_pixels": list(masks.class_pixels(labels, classes).items()), "confidence": item["confidence"]}
        rows.append({**row, "refined": crf.short() if crf is not None else None})
        seconds["refine"] += middle - start
        seconds["encode"] += time.perf_counter() - middle
    errors = sum(row["status"] != "ok" for row in rows)
    report("refine", rows[0]["uri"], len(rows), errors, seconds)
    return pa.Table.from_pylist(rows, schema=FILE_SCHEMA)
