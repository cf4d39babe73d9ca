"""The stages of a block of images inside Ray.

On CPUs one task runs all of them (`whole`): read, decode, score, refine, encode. With GPUs, the actors that hold them stop at
the scores (`Score`), and tasks on any CPU continue from there (`refine`); with the torch backend of the CRF, and for scores at
full resolution, which are too large to be sent, the actors refine as well. A large image is read, scored, refined and encoded by
the process that scores it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from ray.actor import ActorHandle

from deeplab import masks
from deeplab.classes import ClassTable
from deeplab.crf import DenseCRF, Refinement
from deeplab.errors import ImageError
from deeplab.images.decoding import MAX_PIXELS, decode
from deeplab.models import checkpoint
from deeplab.placement import Geometry, Placement
from deeplab.scoring.model_predictor import predictor_of
from deeplab.scoring.multiscale import confidence
from deeplab.scoring.row_bands import RowSource
from deeplab.scoring.settings import Quality, Scoring
from deeplab.segmentation.labelling import labelled as labels_from
from deeplab.segmentation.large_images import margin_of, opened
from pipelines.segment.large_images import segment_large
from pipelines.segment.plan import unpacked
from pipelines.segment.poison import NodeRegister, Suspects, given_up
from pipelines.segment.read_ahead import Loaded, Loader
from pipelines.table.schema import FILE_SCHEMA, MaskColumns

SECONDS = pa.map_(pa.string(), pa.float32())  # by stage
FINISHED = pa.struct([FILE_SCHEMA.field(name) for name in MaskColumns.__annotations__])
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
        ("settings", pa.string()),
        ("finished", FINISHED),
        ("seconds", SECONDS),
    ]
)
# Finished rows, with their node and seconds, which the table does not store.
ROWS = FILE_SCHEMA.append(pa.field("node", pa.string())).append(pa.field("seconds", SECONDS))


class ScoredRow(TypedDict):
    """A row of SCORED."""

    uri: str
    version: str
    read_version: str | None
    error: str | None
    height: int | None
    width: int | None
    encoded: bytes | None
    scores: bytes | None
    grid: list[int] | None
    confidence: float | None
    settings: str | None
    finished: MaskColumns | None
    seconds: list[tuple[str, float]]


@dataclass(frozen=True)
class Scored:
    """One image after the network: its scores, or its finished columns, or its error; what does not apply is None."""

    uri: str
    version: str
    error: str | None = None
    size: tuple[int, int] | None = None  # height, width
    pixels: np.ndarray | None = None
    encoded: bytes | None = None
    scores: np.ndarray | None = None  # float16, C x h x w at the network's stride
    confidence: float | None = None
    settings: str | None = None  # of the scoring: the row's `scored`
    finished: MaskColumns | None = None
    read_version: str | None = None  # of the bytes, if it is not the listed one
    seconds: dict[str, float] = field(default_factory=dict)  # by stage, so far


@dataclass(frozen=True)
class Task:
    """What every stage needs to know of the run; small, and picklable to any node."""

    classes: ClassTable
    output_stride: int | None  # None: the one that the model's card names
    stride: int
    geometry: Geometry
    scoring: Scoring
    quality: Quality
    refinement: Refinement | None
    max_pixels: int
    run: str
    threads: int
    large_pixels: int = MAX_PIXELS  # images with more are never decoded whole

    @property
    def full_resolution(self) -> bool:
        """Whether scores are as large as the image: 16 MB for 375 x 500 pixels and 21 classes."""
        return self.stride == 1


class Scorer:
    """The network and the threads that load its images."""

    def __init__(self, model: ray.ObjectRef, task: Task, holds_gpu: bool = False) -> None:
        """`model`: reference to the result of `checkpoint.read`, so that no node needs the folder. `holds_gpu`: what follows the
        scores runs elsewhere, if it can."""
        if not torch.cuda.is_available():
            torch.set_num_threads(task.threads)
        loaded = checkpoint.parse(*ray.get(model))
        if task.output_stride is not None:
            loaded = loaded.at_stride(task.output_stride)
        self.predictor = predictor_of(loaded, task.scoring)
        self.settings = f"{task.quality} {task.scoring.short(task.output_stride or task.stride, self.predictor.precision)}"
        self.task, self.holds_gpu = task, holds_gpu
        on_gpu = holds_gpu and task.refinement is not None and task.refinement.backend == "torch"
        self.finishes = on_gpu or task.full_resolution
        self.loader = Loader(task.max_pixels, task.large_pixels)
        self.device = threading.Lock()  # the network works on one window at a time, even if several threads call

    def windows(self, block: pa.Table, register: ActorHandle | NodeRegister) -> Iterator[list[Scored]]:
        """The scored images of a block in groups; first, one by one, those that an earlier attempt died with."""
        images = list(zip(*block.select(["uri", "version", "bytes"]).to_pydict().values(), strict=True))
        with Suspects(register, "score", images[0][0]) as suspects:

            def scored(group: list[tuple[str, str, int]]) -> Iterator[list[Scored]]:
                for window in self.loader.windows(group, suspects.write_note):
                    scored_window = self._score(window)
                    window.clear()  # frees a large image's bytes before the next one is read
                    yield scored_window

            deaths = suspects.deaths
            for uri, version, size in sorted(images, key=lambda image: -deaths.get(image[0], -1))[: len(deaths)]:
                if error := given_up(deaths[uri]):
                    yield [Scored(uri, version, error)]
                else:
                    yield from scored([(uri, version, size)])
            yield from scored([image for image in images if image[0] not in deaths])

    def _score(self, window: list[Loaded]) -> list[Scored]:
        # Scores at full resolution are in memory for one image at a time.
        groups = [[image] for image in window] if self.task.full_resolution else [window]
        with self.device:
            return [self._finish(scored) if self.finishes else scored for group in groups for scored in self._scored(group)]

    def _scored(self, group: list[Loaded]) -> Iterator[Scored]:
        small = [image.pixels for image in group if image.pixels is not None and not self._in_bands(image.pixels)]
        start = time.perf_counter()
        score_maps = iter(self.predictor.scores(small))
        seconds_per_image = (time.perf_counter() - start) / len(group)
        for image in group:
            scored = Scored(image.uri, image.version, image.error, read_version=image.read_version)
            seconds = {"read": image.read_seconds, "decode": image.decode_seconds}
            if image.pixels is not None and not self._in_bands(image.pixels):
                scores, size = next(score_maps), image.pixels.shape[:2]
                scored = replace(scored, size=size, pixels=image.pixels, encoded=image.encoded, scores=scores)
                scored = replace(scored, confidence=confidence(scores), settings=self.settings)
                seconds["score"] = seconds_per_image
            elif image.error is None:
                start = time.perf_counter()
                try:
                    scored = replace(scored, finished=self._large(image))
                except ImageError as reason:
                    scored = replace(scored, error=f"decode: {reason}")
                seconds["large"] = time.perf_counter() - start
            yield replace(scored, seconds=seconds)

    def _in_bands(self, pixels: np.ndarray) -> bool:
        return self.predictor.in_windows(*pixels.shape[:2])

    def _finish(self, image: Scored) -> Scored:
        """Refine and encode here; a finished image, or an error, is returned unchanged."""
        image = encoded_mask(image, self.task)
        seconds = dict(image.seconds)
        if self.holds_gpu and "refine" in seconds:  # the GPU waits meanwhile
            seconds["refine_gpu"] = seconds.pop("refine") + seconds.pop("encode")
        return replace(image, seconds=seconds)

    def _large(self, image: Loaded) -> MaskColumns:
        """All further stages of a large image, whose scores are never whole in memory. Raises ImageError."""
        refinements: set[str] = set()

        def label(pixels: np.ndarray, scores: np.ndarray, placement: Placement) -> np.ndarray:
            labels, refined_by = labelled(self.task, pixels.shape[:2], pixels, scores, placement)
            refinements.update([refined_by] if refined_by else [])
            return labels

        def columns_of(source: np.ndarray | RowSource) -> MaskColumns:
            columns = segment_large(source, self.predictor, label, margin, self.task.classes)
            columns["refined"], columns["scored"] = " and ".join(sorted(refinements)) or None, self.settings
            return columns

        margin = margin_of(self.predictor, self.task.refinement is not None)
        if image.pixels is not None:
            return columns_of(image.pixels)
        assert image.header is not None
        with opened(image.encoded, image.header, self.predictor, margin) as rows:
            return columns_of(rows)


# A process keeps its network from block to block; a run with other settings replaces it.
_scorers: dict[str, Scorer] = {}


def whole(block: pa.Table, model: ray.ObjectRef, task: Task, register: ActorHandle) -> pa.Table:
    """The task that runs all stages on one core: a packed block -> ROWS, one for each image, in the block's order.

    Only names and finished rows go through the object store, and no image is decoded twice.
    """
    block = unpacked(block)
    key = f"{model.hex()} {task}"
    if key not in _scorers:
        _scorers.clear()
        _scorers[key] = Scorer(model, task)
    rows = pa.concat_tables(refined(images, task) for images in _scorers[key].windows(block, register))
    return in_order(rows, block)


class Score:
    """The actor that holds a GPU: a packed block -> SCORED, encoded bytes and stride-8 scores, or the error of each image.

    It works on two blocks at a time, so that the first images of the next block are decoded when the GPU finishes the last.
    """

    CALLS = 2

    def __init__(self, model: ray.ObjectRef, task: Task, register: ActorHandle) -> None:
        """`model`, `task`: as Scorer's. `register`: the actor of poison.Register."""
        self.scorer, self.register = Scorer(model, task, holds_gpu=True), register

    def __call__(self, block: pa.Table) -> pa.Table:
        block = unpacked(block)
        images = [to_row(image) for images in self.scorer.windows(block, self.register) for image in images]
        return in_order(pa.Table.from_pylist(images, schema=SCORED), block)


def in_order(rows: pa.Table, block: pa.Table) -> pa.Table:
    """Rows in the order of their block, so that a block that is done again gives the same rows."""
    positions = pc.index_in(block["uri"].combine_chunks(), value_set=rows["uri"].combine_chunks())
    return rows.take(positions)


def to_row(image: Scored) -> ScoredRow:
    """A row of SCORED. It carries the encoded bytes instead of the pixels, which are ten times as large."""
    height, width = image.size or (None, None)
    return ScoredRow(
        uri=image.uri,
        version=image.version,
        read_version=image.read_version,
        error=image.error,
        height=height,
        width=width,
        encoded=image.encoded,
        scores=image.scores.tobytes() if image.scores is not None else None,
        grid=list(image.scores.shape) if image.scores is not None else None,
        confidence=image.confidence,
        settings=image.settings,
        finished=image.finished,
        seconds=list(image.seconds.items()),
    )


@lru_cache(maxsize=2)
def _engine(refinement: Refinement) -> DenseCRF:
    """The CRF with its buffers, one per process."""
    return refinement.engine()


def refine(block: pa.Table, task: Task, register: ActorHandle | NodeRegister) -> pa.Table:
    """The refining task: a block of SCORED -> ROWS, in its order."""
    if not block.num_rows:
        return ROWS.empty_table()

    def scored(row: ScoredRow) -> Scored:
        image = Scored(row["uri"], row["version"], read_version=row["read_version"], seconds=dict(row["seconds"]))
        error = row["error"] or given_up(suspects.deaths.get(row["uri"], 0))
        if error is not None or row["finished"] is not None:
            return replace(image, error=error, finished=row["finished"])
        encoded, scores, grid, height, width = row["encoded"], row["scores"], row["grid"], row["height"], row["width"]
        assert encoded is not None and scores is not None and grid is not None and height is not None and width is not None
        return replace(
            image,
            size=(height, width),
            pixels=decode(encoded, task.max_pixels) if task.refinement is not None else None,
            scores=np.frombuffer(scores, np.float16).reshape(grid),
            confidence=row["confidence"],
            settings=row["settings"],
        )

    uris = block["uri"].to_pylist()
    with Suspects(register, "refine", uris[0]) as suspects:
        alone = sorted((uri for uri in uris if uri in suspects.deaths), key=lambda uri: -suspects.deaths[uri])
        parts = []
        for group in [*([uri] for uri in alone), [uri for uri in uris if uri not in suspects.deaths]]:
            suspects.write_note(group)
            rows = block.filter(pc.is_in(block["uri"], value_set=pa.array(group, pa.string())))
            parts.append(refined(map(scored, rows.to_pylist()), task))
        return in_order(pa.concat_tables(parts), block)


def labelled(
    task: Task, size: tuple[int, int], pixels: np.ndarray | None, scores: np.ndarray, placement: Placement | None = None
) -> tuple[np.ndarray, str | None]:
    """Upsample the scores, apply the dense CRF (only it needs the pixels) and take the winning class.

    placement: where the scores lie, if the pixels are a window of an image. Returns labels, height x width, and the row's
    `refined`: the CRF that computed them, None without one.
    """
    placement = placement or task.geometry.scores(scores.shape[1:], size, task.stride)
    return labels_from(scores, placement, size, pixels, task.refinement, _engine)


def mask_columns(labels: np.ndarray, refined_by: str | None, image: Scored, classes: ClassTable) -> MaskColumns:
    """The columns of a row from the result of `labelled` for a scored image."""
    assert image.confidence is not None
    return MaskColumns(
        height=labels.shape[0],
        width=labels.shape[1],
        mask=masks.encode_png(labels, classes),
        class_pixels=list(masks.class_pixels(labels, classes).items()),
        confidence=image.confidence,
        refined=refined_by,
        scored=image.settings,
    )


def encoded_mask(image: Scored, task: Task) -> Scored:
    """An image with scores after the CRF and the encoding; any other is returned unchanged."""
    if image.size is None or image.scores is None:
        return image
    start = time.perf_counter()
    labels, refined_by = labelled(task, image.size, image.pixels, image.scores)
    middle = time.perf_counter()
    finished = mask_columns(labels, refined_by, image, task.classes)
    seconds = {**image.seconds, "refine": middle - start, "encode": time.perf_counter() - middle}
    return replace(image, size=None, pixels=None, encoded=None, scores=None, finished=finished, seconds=seconds)


def refined(images: Iterable[Scored], task: Task) -> pa.Table:
    """ROWS, one per image, with its encoded mask or its error."""
    node = _node()
    rows = []
    for image in images:
        image = encoded_mask(image, task)
        row: dict[str, object] = {"uri": image.uri, "version": image.version, "read_version": image.read_version}
        row |= {"run": task.run, "segmented_at": datetime.now(UTC), "node": node, "seconds": list(image.seconds.items())}
        state = {"status": "error", "error": image.error} if image.finished is None else {"status": "ok", **image.finished}
        rows.append(row | state)
    return pa.Table.from_pylist(rows, schema=ROWS)


@lru_cache(maxsize=1)
def _node() -> str:
    """This node's address and the first digits of its id, for people."""
    return f"{ray.util.get_node_ip_address()}/{ray.get_runtime_context().get_node_id()[:6]}"
