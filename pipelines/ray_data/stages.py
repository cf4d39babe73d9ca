"""Columns of image bytes to columns of masks: the stages of `segment` for `Dataset.map_batches`.

`Segmenter` (actors) and `segment` (tasks) run all stages of a batch in one process. With GPUs, `Scorer` (actors) stops at the
scores, and `refine` (tasks on any CPU) continues from there. Batches of all of Ray Data's formats are taken; Arrow tables are
returned, with the columns of the batch and those of the masks behind them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import ray
from ray.data.block import BlockAccessor, BlockType, DataBatch

from deeplab.errors import UserError
from deeplab.segmentation.options import MaskOptions
from pipelines.options import SegmentOptions
from pipelines.segment import stages
from pipelines.segment.poison import NodeRegister
from pipelines.segment.read_ahead import Loader
from pipelines.segment.run import Run, begin, task_of
from pipelines.table.schema import SCHEMA

# The columns of masks, as in the results table; `error` is null where there is a mask, the others where there is none.
MASK_COLUMNS = ("mask", "class_pixels", "confidence", "height", "width", "scored", "refined", "error")
# The column between Scorer and refine: for each image what stages.SCORED has beside names and image bytes, as an Arrow stream
# of one row. Structs and maps do not survive the batches of NumPy and pandas; bytes do.
SCORES = "deeplab_scores"
HANDED_ON = pa.schema([field for field in stages.SCORED if field.name not in ("uri", "version", "read_version", "encoded")])


class BatchError(UserError):
    """A batch does not have the column that a stage needs, or has one that it would add."""


@dataclass(frozen=True)
class Settings:
    """The arguments of a stage: the column of image bytes, what the new columns' names begin with, model and options."""

    model: str
    image: str
    prefix: str
    options: MaskOptions

    def run(self) -> Run:
        """The model and its settings, as a run of `segment` has them. Raises ModelError."""
        # The rows come from the caller's dataset and return to it, so there is no archive and no table.
        return begin(SegmentOptions(archive="-", results="-", model=self.model, **asdict(self.options)))

    @classmethod
    def of(cls, model: str, image: str, prefix: str, options: Mapping[str, object]) -> Settings:
        return cls(model, image, prefix, MaskOptions.named(**options))


class Segmenter:
    """Image bytes -> masks, in an actor that keeps the network:

        dataset.map_batches(Segmenter, fn_constructor_kwargs={"model": "voc"}, batch_size=64, compute=ActorPoolStrategy(size=4))

    With `num_gpus=1` the network runs on the GPU, and the CRF on the actor's core.
    """

    def __init__(self, model: str, image: str = "bytes", prefix: str = "", **options: Any) -> None:
        """model: a bundled model, REGISTRY@ALIAS, or a folder or s3:// prefix that every node can read.
        image: the column with the bytes of image files; null is an error row. prefix: of the new columns' names.
        options: `deeplab.segmentation.options.MaskOptions`, the options of `deeplab segment`.

        Raises ModelError, and ValueError or TypeError for options.
        """
        self.settings = Settings.of(model, image, prefix, options)
        self.scorer = _BatchScorer(self.settings.run())

    def __call__(self, batch: DataBatch) -> pa.Table:
        """The batch with MASK_COLUMNS. A broken image has an `error` and no mask. Raises BatchError."""
        table, images = _opened(batch, self.settings)
        _check_free(table, [self.settings.prefix + name for name in MASK_COLUMNS])
        parts = [stages.refined(scored, self.scorer.task) for scored in self.scorer.windows_of(images)]
        return _with_masks(table, images, parts, self.settings)


def segment(batch: DataBatch, model: str, image: str = "bytes", prefix: str = "", **options: Any) -> pa.Table:
    """`Segmenter` as a task, whose process keeps the network for the next batch with the same arguments:

    dataset.map_batches(segment, fn_kwargs={"model": "voc"}, batch_size=64)
    """
    return _segmenter(Settings.of(model, image, prefix, options))(batch)


@lru_cache(maxsize=1)
def _segmenter(settings: Settings) -> Segmenter:
    return Segmenter(settings.model, settings.image, settings.prefix, **asdict(settings.options))


class Scorer:
    """Image bytes -> scores, in an actor that holds a GPU; the first half of `Segmenter`, with the same arguments.

    The batch gets one more column, SCORES, which `refine` replaces by masks. The column of image bytes must remain until then.
    """

    def __init__(self, model: str, image: str = "bytes", prefix: str = "", **options: Any) -> None:
        self.settings = Settings.of(model, image, prefix, options)
        self.scorer = _BatchScorer(self.settings.run(), holds_gpu=True)

    def __call__(self, batch: DataBatch) -> pa.Table:
        table, images = _opened(batch, self.settings)
        _check_free(table, [SCORES])
        scored = [stages.to_row(image) for group in self.scorer.windows_of(images) for image in group]
        rows = pa.Table.from_pylist(scored, schema=stages.SCORED)
        rows = stages.in_order(rows, images.block) if images.block.num_rows else rows
        return table.append_column(SCORES, pa.array(list(_streams(rows.select(HANDED_ON.names))), pa.large_binary()))


def refine(batch: DataBatch, model: str, image: str = "bytes", prefix: str = "", **options: Any) -> pa.Table:
    """Scores -> masks, the second half of `Segmenter`: a task on a CPU, with the arguments of the `Scorer` before it.

    The batch loses SCORES and gets MASK_COLUMNS. Raises BatchError.
    """
    settings = Settings.of(model, image, prefix, options)
    table, images = _opened(batch, settings)
    if SCORES not in table.column_names:
        raise BatchError(f"refine: no column {SCORES!r}; a Scorer comes before it, here are {', '.join(table.column_names)}")
    streams = table[SCORES].to_pylist()
    table = table.drop_columns([SCORES])
    _check_free(table, [settings.prefix + name for name in MASK_COLUMNS])
    scores = pa.concat_tables([HANDED_ON.empty_table(), *(pa.ipc.open_stream(stream).read_all() for stream in streams)])
    columns = {name: scores[name] for name in HANDED_ON.names}
    columns |= {"uri": images.block["uri"], "version": images.block["version"], "encoded": pa.array(images.encoded)}
    columns["read_version"] = pa.nulls(len(streams))
    block = pa.table([columns[name] for name in stages.SCORED.names], stages.SCORED.names).cast(stages.SCORED)
    return _with_masks(table, images, [stages.refine(block, _task(settings), NodeRegister())], settings)


@lru_cache(maxsize=1)
def _task(settings: Settings) -> stages.Task:
    return task_of(settings.run())


class _Images:
    """The images of one batch as `stages` take them: `block` has their keys and sizes; `encoded` their bytes, None for null."""

    def __init__(self, encoded: list[bytes | None]) -> None:
        self.encoded = encoded
        # A batch that is done again has the same keys, by which `poison` knows what its last process died with. (The id of Ray's
        # task would be another in each attempt, as Ray Data calls stages from threads of their own.)
        batch = hashlib.sha256()
        for data in encoded:
            batch.update(hashlib.sha256(data or b"").digest())
        keys = [f"{batch.hexdigest()}-{index}" for index in range(len(encoded))]
        sizes = [len(data or b"") for data in encoded]
        columns = {"uri": pa.array(keys, pa.string()), "version": pa.array([""] * len(keys), pa.string())}
        self.block = pa.table({**columns, "bytes": pa.array(sizes, pa.int64())})
        self.by_key = dict(zip(keys, encoded, strict=True))


class _BatchScorer(stages.Scorer):
    """The network, and the threads that decode the images of the batches that it works on."""

    def __init__(self, run: Run, holds_gpu: bool = False) -> None:
        super().__init__(ray.put(run.source), task_of(run), holds_gpu)
        self.batches: list[_Images] = []
        self.loader = Loader(self.task.max_pixels, self.task.large_pixels, self._read)

    def windows_of(self, images: _Images) -> Iterator[list[stages.Scored]]:
        """The scored images of a batch in groups."""
        with self._working_on(images):
            yield from self.windows(images.block, NodeRegister()) if images.encoded else ()

    @contextmanager
    def _working_on(self, images: _Images) -> Iterator[None]:
        self.batches.append(images)
        try:
            yield
        finally:
            self.batches.remove(images)

    def _read(self, key: str, version: str) -> tuple[bytes, str, str | None]:
        data = next(images.by_key[key] for images in list(self.batches) if key in images.by_key)
        return (data, version, None) if data is not None else (b"", version, "read: the image's bytes are null")


def _opened(batch: DataBatch, settings: Settings) -> tuple[pa.Table, _Images]:
    """The batch as a table, and its images. Raises BatchError."""
    table = BlockAccessor.for_block(BlockAccessor.batch_to_block(batch, BlockType.ARROW)).to_arrow()
    if settings.image not in table.column_names:
        raise BatchError(
            f"no column {settings.image!r} of image bytes; the batch has {', '.join(table.column_names)}; image= names another"
        )
    column = table[settings.image]
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type) or pa.types.is_null(column.type)):
        raise BatchError(f"column {settings.image!r} is {column.type}: the bytes of image files (binary) are accepted")
    return table, _Images(column.to_pylist())


def _streams(rows: pa.Table) -> Iterator[bytes]:
    """Each row as an Arrow stream of its own."""
    for index in range(rows.num_rows):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows.slice(index, 1))
        yield sink.getvalue().to_pybytes()


def _check_free(table: pa.Table, names: list[str]) -> None:
    if taken := [name for name in names if name in table.column_names]:
        raise BatchError(f"the batch already has the columns {', '.join(taken)}; prefix= gives the new ones other names")


def _with_masks(table: pa.Table, images: _Images, parts: list[pa.Table], settings: Settings) -> pa.Table:
    """The batch with the columns of stages.ROWS that describe masks."""
    rows = pa.concat_tables(parts) if parts else stages.ROWS.empty_table()
    rows = stages.in_order(rows, images.block) if images.encoded else rows
    for name in MASK_COLUMNS:
        table = table.append_column(settings.prefix + name, rows[name].cast(SCHEMA.field(name).type))
    return table
