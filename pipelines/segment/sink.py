"""Where a stream's finished blocks go: bundled into part files by Ray tasks, and committed every few seconds beside the stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Protocol, Self

import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipelines.storage import filesystems
from pipelines.table.commit import ROWS_PER_FILE, Committer, PartFile, write_part
from pipelines.table.schema import FILE_SCHEMA

# Of part files that are being written at a time. With more to write the stream waits, and with it, by Ray Data's own
# limits, all that works: so a store that is away fills no memory.
WRITES = 8
PART_BYTES = 128 << 20  # of large masks fewer rows go into a file
SMALL_BYTES = 8 << 20  # the driver writes so few itself: a process that starts for them takes a second
TICK_SECONDS = 0.2


class Block(Protocol):
    """A finished block in Ray's object store: a table of stages.ROWS, and what Ray Data knows of it."""

    ref: Any
    metadata: Any


def write_blocks(table_uri: str, model: str, *blocks: pa.Table) -> PartFile:
    """The task that makes one part file of finished blocks (stages.ROWS)."""
    rows = pa.concat_tables(blocks)
    taken = pa.concat_arrays([chunk.cast(pa.map_(pa.string(), pa.float32())) for chunk in rows["seconds"].chunks])
    spent = pa.table({"stage": taken.keys, "seconds": taken.items}).group_by("stage").aggregate([("seconds", "sum")])
    seconds = dict(zip(spent["stage"].to_pylist(), spent["seconds_sum"].to_pylist(), strict=True))
    nodes = {entry["values"]: entry["counts"] for entry in pc.value_counts(rows["node"]).to_pylist()}
    return write_part(table_uri, model, rows.select(FILE_SCHEMA.names), seconds, nodes)


def _size(blocks: Iterable[Block]) -> int:
    return sum(block.metadata.size_bytes for block in blocks)


class Sink:
    """Takes the blocks of one stream and commits them. Use as a context: at its end everything that was taken is committed.

    A thread of its own commits what has arrived every `every` seconds; the stream does not wait for it. Trouble with
    writing or committing is raised by the next `take` or `check`, and at the end after one more try.
    """

    def __init__(self, committer: Committer, every: float) -> None:
        self.committer, self.every = committer, every
        self.finished = 0  # rows that were taken
        self.committed = committer.done
        self.trouble: Exception | None = None
        self._write = ray.remote(num_cpus=0, max_retries=5)(write_blocks)
        self._blocks: list[Block] = []  # taken, in no part file yet
        self._writing: dict[Any, list[Block]] = {}
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
            self._thread.join(TICK_SECONDS)  # in short steps, so that a second Ctrl-C ends it
        if error is None:
            self.check()

    def take(self, blocks: Iterable[Block]) -> None:
        """Finished blocks; waits while WRITES part files are being written. Raises what went wrong with those."""
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
        """Raise what went wrong since."""
        if self.trouble is not None:
            raise self.trouble

    def _flush(self) -> None:
        """Have what was taken written; the caller holds the lock."""
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
        while not self._closing:  # the stream hears of it and closes
            time.sleep(TICK_SECONDS)
        try:
            self._commit()
            self.trouble = None  # the last try brought everything in
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
        finally:  # what could be written is committed, whatever happened to the rest
            self.committed = filesystems.outlast(self.committer.commit)

    def _write_here(self, blocks: list[Block]) -> None:
        try:
            tables = ray.get([block.ref for block in blocks])
            self.committer.add([write_blocks(self.committer.table.uri, self.committer.model, *tables)])
        except Exception:
            self._keep(blocks)
            raise

    def _keep(self, blocks: list[Block]) -> None:
        """Blocks that could not be written, for the next try."""
        with self._changed:
            self._blocks = [*blocks, *self._blocks]

    def _collect(self, wait: bool) -> None:
        """Hand part files whose writing has ended to the committer; `wait`: those that are being written now, too.

        Blocks that could not be written are kept for the next try, and the first reason is raised.
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
