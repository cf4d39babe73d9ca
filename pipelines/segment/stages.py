"""What happens to a block of images inside Ray.

On CPUs one task does all of it (`whole`): read, decode, score, refine, encode. With GPUs the actors that hold them stop at
the scores (`Score`), and tasks on any CPU go on from there (`refine`), unless the CRF's backend is torch: then they refine,
too. A large image is read, scored, refined and encoded by the process that scores it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from deeplab import masks
from deeplab.classes import ClassTable
from deeplab.crf import DenseCRF, Refinement
from deeplab.errors import ImageError
from deeplab.images.decoding import MAX_PIXELS, decode
from deeplab.models import checkpoint
from deeplab.scoring.multiscale import confidence, winning_classes
from deeplab.scoring.predictor import Predictor, Scoring
from pipelines.segment.large_images import segment_large
from pipelines.segment.plan import unpacked
from pipelines.segment.poison import Suspects, given_up
from pipelines.segment.read_ahead import Loaded, Loader
from pipelines.table.schema import FILE_SCHEMA

# What the CRF sees around each window of a large image. With it, the labels of a mosaic of photos differ from those of the
# CRF over the whole as much as these do when the image is cropped by 8 pixels: 0.04 % of pixels (the CRF changes 1.7 %).
MARGIN = 64
# What is known of an image that had its whole way already.
SECONDS = pa.map_(pa.string(), pa.float32())  # by stage
FINISHED = pa.struct([FILE_SCHEMA.field(name) for name in ("height", "width", "mask", "class_pixels", "confidence", "refined")])
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
        ("seconds", SECONDS),
    ]
)
# Finished rows, with where they were made and what they took; both stay out of the table.
ROWS = FILE_SCHEMA.append(pa.field("node", pa.string())).append(pa.field("seconds", SECONDS))


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
    seconds: dict[str, float] = field(default_factory=dict)  # by stage, so far


@dataclass(frozen=True)
class Task:
    """What every stage needs to know of the run; small, and picklable to any node."""

    classes: ClassTable
    stride: int
    align_corners: bool
    scoring: Scoring
    refinement: Refinement | None
    max_pixels: int
    run: str
    threads: int
    large_pixels: int = MAX_PIXELS  # images above it are never decoded whole


class Scorer:
    """The network and what feeds it."""

    def __init__(self, model: Any, task: Task, refines: bool = False) -> None:
        """`model`: an object reference to what `checkpoint.read` returned, so that no node needs the folder.
        `refines`: the CRF has its turn here, on the device that scores."""
        import ray

        if not torch.cuda.is_available():
            torch.set_num_threads(task.threads)
        self.predictor = Predictor(checkpoint.parse(*ray.get(model)).network, task.scoring)
        self.task, self.refines = task, refines
        self.loader = Loader(task.max_pixels, task.large_pixels)
        self.device = threading.Lock()  # the network works on one window at a time, whoever brings it

    def windows(self, block: pa.Table, register: Any) -> Iterator[list[Scored]]:
        """The block's images in groups, scored; first, one by one, those whose process died at an earlier attempt."""
        images = list(zip(*block.select(["uri", "version", "bytes"]).to_pydict().values(), strict=True))
        with Suspects(register, "score", images[0][0]) as suspects:

            def scored(some: list[tuple[str, str, int]]) -> Iterator[list[Scored]]:
                for window in self.loader.windows(some, suspects.hold):
                    done = self._score(window)
                    window.clear()  # a large image's bytes are not held while the next one's are read
                    yield done

            deaths = suspects.deaths
            for uri, version, size in sorted(images, key=lambda image: -deaths.get(image[0], -1))[: len(deaths)]:
                if error := given_up(deaths[uri]):
                    yield [Scored(uri, version, error)]
                else:
                    yield from scored([(uri, version, size)])
            yield from scored([image for image in images if image[0] not in deaths])

    def _score(self, window: list[Loaded]) -> list[Scored]:
        images = []
        with self.device:
            start = time.perf_counter()
            scores = iter(self.predictor.scores([image.pixels for image in window if image.pixels is not None]))
            each = (time.perf_counter() - start) / len(window)
            for image in window:
                scored = Scored(image.uri, image.version, image.error, read_version=image.read_version)
                seconds = {"read": image.read_seconds, "decode": image.decode_seconds}
                if image.pixels is not None:
                    found, size = next(scores), image.pixels.shape[:2]
                    scored = replace(scored, size=size, pixels=image.pixels, encoded=image.encoded, scores=found)
                    scored = replace(scored, confidence=confidence(found))
                    seconds["score"] = each
                elif image.error is None:
                    start = time.perf_counter()
                    scored = replace(scored, **self._large(image))
                    seconds["large"] = time.perf_counter() - start
                images.append(replace(scored, seconds=seconds))
            return [self._finish(image) for image in images] if self.refines else images

    def _finish(self, image: Scored) -> Scored:
        """The rest of an image's way, here on the GPU; what is finished, or an error, stays as it is."""
        if image.size is None or image.scores is None:
            return image
        start = time.perf_counter()
        labels, by = labelled(self.task, image.size, image.pixels, image.scores)
        finished = {**_columns(labels, by, self.task.classes), "confidence": image.confidence}
        seconds = {**image.seconds, "refine_gpu": time.perf_counter() - start}
        return replace(image, size=None, pixels=None, encoded=None, scores=None, finished=finished, seconds=seconds)

    def _large(self, image: Loaded) -> dict[str, Any]:
        """All of the image's way, here and now: neither its pixels nor its scores are ever held whole. What Scored has of it."""
        assert image.header is not None

        refined: set[str] = set()

        def label(pixels: np.ndarray, scores: np.ndarray) -> np.ndarray:
            labels, by = labelled(self.task, pixels.shape[:2], pixels, scores)
            refined.update([by] if by else [])
            return labels

        try:
            margin = MARGIN if self.task.refinement is not None else self.task.stride
            finished = segment_large(image.encoded, image.header, self.predictor, label, margin, self.task.classes)
            finished["refined"] = " and ".join(sorted(refined)) or None
            return {"finished": finished}
        except ImageError as reason:
            return {"error": f"decode: {reason}"}


# A process keeps its network from block to block; a run with other settings brings its own.
_scorers: dict[str, Scorer] = {}


def whole(block: pa.Table, model: Any, task: Task, register: Any) -> pa.Table:
    """The task that does all of an image's way on one core: a packed block -> ROWS, one for each image, in its order.

    Nothing but names and finished rows goes through the object store, and no image is decoded twice.
    """
    block = unpacked(block)
    key = f"{model.hex()} {task}"
    if key not in _scorers:
        _scorers.clear()
        _scorers[key] = Scorer(model, task)
    done = pa.concat_tables(refined(images, task) for images in _scorers[key].windows(block, register))
    return in_order(done, block)


class Score:
    """The actor that holds a GPU: a packed block -> SCORED, encoded bytes and stride-8 scores, or the error of each image.

    Two blocks are at work in it at a time, so that the first images of the next are decoded when the GPU is done with the last.
    """

    CALLS = 2

    def __init__(self, model: Any, task: Task, register: Any) -> None:
        """`model`, `task`: as Scorer's. `register`: the actor of poison.Register."""
        refines = task.refinement is not None and task.refinement.backend == "torch"
        self.scorer, self.register = Scorer(model, task, refines), register

    def __call__(self, block: pa.Table) -> pa.Table:
        block = unpacked(block)
        images = [to_row(image) for images in self.scorer.windows(block, self.register) for image in images]
        return in_order(pa.Table.from_pylist(images, schema=SCORED), block)


def in_order(rows: pa.Table, block: pa.Table) -> pa.Table:
    """Rows in the order of their block: however often a block is done again, and by whom, its rows are the same."""
    place = pc.index_in(block["uri"].combine_chunks(), value_set=rows["uri"].combine_chunks())
    return rows.take(place)


def to_row(image: Scored) -> dict[str, Any]:
    """A row of SCORED; pixels stay behind, as the encoded bytes are a tenth of them."""
    row: dict[str, Any] = {"uri": image.uri, "version": image.version, "read_version": image.read_version}
    row |= {"error": image.error, "finished": image.finished, "seconds": list(image.seconds.items())}
    if image.size is not None and image.scores is not None:
        row |= {"height": image.size[0], "width": image.size[1], "encoded": image.encoded}
        row |= {"scores": image.scores.tobytes(), "grid": list(image.scores.shape), "confidence": image.confidence}
    return row


@lru_cache(maxsize=2)
def _engine(refinement: Refinement) -> DenseCRF:
    """The CRF with its buffers, one per process."""
    return refinement.engine()


def refine(block: pa.Table, task: Task, register: Any) -> pa.Table:
    """The refining task: a block of SCORED -> ROWS, in its order."""
    if not block.num_rows:
        return ROWS.empty_table()

    def scored(row: dict[str, Any]) -> Scored:
        common = Scored(row["uri"], row["version"], read_version=row["read_version"], seconds=dict(row["seconds"]))
        error = row["error"] or given_up(suspects.deaths.get(row["uri"], 0))
        if error is not None or row["finished"] is not None:
            return replace(common, error=error, finished=row["finished"])
        scores = np.frombuffer(row["scores"], np.float16).reshape(row["grid"])
        pixels = decode(row["encoded"], task.max_pixels) if task.refinement is not None else None
        size = row["height"], row["width"]
        return replace(common, size=size, pixels=pixels, scores=scores, confidence=row["confidence"])

    uris = block["uri"].to_pylist()
    with Suspects(register, "refine", uris[0]) as suspects:
        alone = sorted((uri for uri in uris if uri in suspects.deaths), key=lambda uri: -suspects.deaths[uri])
        parts = []
        for some in [*([uri] for uri in alone), [uri for uri in uris if uri not in suspects.deaths]]:
            suspects.hold(some)
            rows = block.filter(pc.is_in(block["uri"], value_set=pa.array(some, pa.string())))
            parts.append(refined(map(scored, rows.to_pylist()), task))
        return in_order(pa.concat_tables(parts), block)


def labelled(task: Task, size: tuple[int, int], pixels: np.ndarray | None, scores: np.ndarray) -> tuple[np.ndarray, str | None]:
    """Scores to full size, dense CRF (which alone needs the pixels), the winning class.

    Labels, height x width, and the row's `refined`: what computed them, None without CRF.
    """
    if task.refinement is None:
        return winning_classes(scores, *size, task.stride, task.align_corners), None
    assert pixels is not None
    crf = _engine(task.refinement)
    try:
        return crf.labels(pixels, scores, stride=task.stride, align_corners=task.align_corners), crf.short()
    except torch.OutOfMemoryError:  # a large image on a small GPU
        exact = _engine(replace(task.refinement, mode="exact", backend="native"))
        return exact.labels(pixels, scores, stride=task.stride, align_corners=task.align_corners), exact.short()


def _columns(labels: np.ndarray, by: str | None, classes: ClassTable) -> dict[str, Any]:
    """What the results table has of what `labelled` gave."""
    counts = list(masks.class_pixels(labels, classes).items())
    png = masks.encode_png(labels, classes)
    return {"height": labels.shape[0], "width": labels.shape[1], "mask": png, "class_pixels": counts, "refined": by}


def refined(images: Iterable[Scored], task: Task) -> pa.Table:
    """Labels and their PNG: ROWS, one per image."""
    node = _node()
    rows = []
    for image in images:
        row: dict[str, Any] = {"uri": image.uri, "version": image.version, "read_version": image.read_version}
        row |= {"run": task.run, "segmented_at": datetime.now(UTC), "node": node, "status": "ok"}
        row["seconds"] = list(image.seconds.items())
        if image.finished is not None:
            rows.append({**row, **image.finished})
        elif image.size is None or image.scores is None:
            rows.append({**row, "status": "error", "error": image.error})
        else:
            start = time.perf_counter()
            labels, by = labelled(task, image.size, image.pixels, image.scores)
            middle = time.perf_counter()
            columns = {**_columns(labels, by, task.classes), "confidence": image.confidence}
            seconds = {**image.seconds, "refine": middle - start, "encode": time.perf_counter() - middle}
            rows.append({**row, **columns, "seconds": list(seconds.items())})
    return pa.Table.from_pylist(rows, schema=ROWS)


@lru_cache(maxsize=1)
def _node() -> str:
    """This node's address and the first of its id, for people."""
    import ray

    return f"{ray.util.get_node_ip_address()}/{ray.get_runtime_context().get_node_id()[:6]}"
