"""The sink of a stream: Ray tasks bundle its finished blocks into part files, and a thread commits these every few seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Protocol, Self

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data.block import BlockMetadata

from pipelines.storage import filesystems
from pipelines.table.commit import ROWS_PER_FILE, Committer, PartFile, write_part
from pipelines.table.schema import FILE_SCHEMA

# Most part files being written at a time. With more to write the stream waits and, by Ray Data's own limits, so do all stages:
# memory does not fill up while a store is down.
WRITES = 8
PART_BYTES = 128 << 20  # with large masks, a file holds fewer rows
SMALL_BYTES = 8 << 20  # up to this the driver writes itself: to start a process takes a second
TICK_SECONDS = 0.2


class Block(Protocol):
    """A finished block in Ray's object store: a table of stages.ROWS, and Ray Data's metadata."""

    ref: ray.ObjectRef
    metadata: BlockMetadata


def write_blocks(table_uri: str, model: str, *blocks: pa.Table) -> PartFile:
    """The task that writes finished blocks (stages.ROWS) as one part file."""
    rows = pa.concat_tables(blocks)
    stages = pa.concat_arrays([chunk.cast(pa.map_(pa.string(), pa.float32())) for chunk in rows["seconds"].chunks])
    sums = pa.table({"stage": stages.keys, "seconds": stages.items}).group_by("stage").aggregate([("seconds", "sum")])
    seconds = dict(zip(sums["stage"].to_pylist(), sums["seconds_sum"].to_pylist(), strict=True))
    nodes = {entry["values"]: entry["counts"] for entry in pc.value_counts(rows["node"]).to_pylist()}
    return write_part(table_uri, model, rows.select(FILE_SCHEMA.names), seconds, nodes)


def _size(blocks: Iterable[Block]) -> int:
    return sum(block.metadata.size_bytes for block in blocks)


class Sink:
    """Takes the blocks of one stream and commits them. Use as a context: at its end all blocks are committed.

    A thread commits every `every` seconds; the stream does not wait for it. An error of writing or committing is raised by the
    next `take` or `check`, and at the end after one more try.
    """

    def __init__(self, committer: Committer, every: float) -> None:
        self.committer, self.every = committer, every
        self.finished = 0  # rows of the blocks so far
        self.committed = committer.done
        self.trouble: Exception | None = None
        self._write = ray.remote(num_cpus=0, max_retries=5)(write_blocks)
        self._blocks: list[Block] = []  # in no part file yet
        self._writing: dict[ray.ObjectRef, list[Block]] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="commits", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        while self._thread.is_alive():
            self._thread.join(TICK_SECONDS)  # in short steps, so that a second Ctrl-C interrupts it
        if error is None:
            self.check()

    def take(self, blocks: Iterable[Block]) -> None:
        """Take finished blocks; waits while WRITES part files are being written. Raises the error of an earlier write or commit."""
        with self._changed:
            while len(self._writing) >= WRITES and self.trouble is None and not self._closing:
                self._changed.wait(1)
            self.check()
            for block in blocks:
                self._blocks.append(block)
                self.finished += block.metadata.num_rows
            if sum(block.metadata.num_rows for block in self._blocks) >= ROWS_PER_FILE or _size(self._blocks) >= PART_BYTES:
                self._flush()

    def check(self) -> None:
        """Raise the error of an earlier write or commit."""
        if self.trouble is not None:
            raise self.trouble

    def _flush(self) -> None:
        """Start to write the blocks in a task; the caller holds the lock."""
        if self._blocks:
            blocks, self._blocks = self._blocks, []
            refs = [block.ref for block in blocks]
            self._writing[self._write.remote(self.committer.table.uri, self.committer.model, *refs)] = blocks

    def _run(self) -> None:
        due = time.monotonic() + self.every
        while not self._closing:
            with self._changed:
                self._changed.wait(TICK_SECONDS)
            try:
                self._collect(wait=False)
                if time.monotonic() >= due:
                    self._commit()
                    due = time.monotonic() + self.every
            except Exception as error:
                self._fail(error)
                break
        while not self._closing:  # after an error: the stream will see it and close
            time.sleep(TICK_SECONDS)
        try:
            self._commit()
            self.trouble = None  # the last try committed everything
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self.trouble = self.trouble or error
            self._changed.notify_all()

    def _commit(self) -> None:
        blocks: list[Block] = []
        with self._changed:
            if _size(self._blocks) <= SMALL_BYTES:
                blocks, self._blocks = self._blocks, blocks
            self._flush()
        try:
            if blocks:
                self._write_here(blocks)
            self._collect(wait=True)
        finally:  # commit the files that could be written, whatever happened to the others
            self.committed = filesystems.outlast(self.committer.commit)

    def _write_here(self, blocks: list[Block]) -> None:
        try:
            tables = ray.get([block.ref for block in blocks])
            self.committer.add([write_blocks(self.committer.table.uri, self.committer.model, *tables)])
        except Exception:
            self._keep(blocks)
            raise

    def _keep(self, blocks: list[Block]) -> None:
        """Keep blocks that could not be written for the next try."""
        with self._changed:
            self._blocks = [*blocks, *self._blocks]

    def _collect(self, wait: bool) -> None:
        """Hand finished part files to the committer; with `wait`, also those being written now.

        Blocks that could not be written are kept for the next try, and the first error is raised.
        """
        with self._changed:
            pending = list(self._writing)
        reasons: list[Exception] = []
        while pending:
            ready, pending = ray.wait(pending, timeout=None if wait else 0)
            if not ready:
                break
            with self._changed:
                blocks = self._writing.pop(ready[0])
                self._changed.notify_all()
            try:
                self.committer.add([ray.get(ready[0])])
            except Exception as error:
                reasons.append(error)
                self._keep(blocks)
        if reasons:
            raise reasons[0]
