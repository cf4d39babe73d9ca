"""The way of finished rows into the table: write tasks put files, the driver commits them in one step."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from deltalake.transaction import AddAction, RemoveAction
from ray.data import Datasink

from pipelines import storage
from pipelines.results import FILE_SCHEMA, CommitConflict, ResultsTable

ROWS_PER_FILE = 4000
COMMIT_TRIES = 50
STATISTICS = ("uri", "status", "run")  # columns whose range goes into the log, for readers that skip files


@dataclass(frozen=True)
class PartFile:
    """One Parquet file that was written for the table and is not yet named by the log."""

    path: str
    size: int
    rows: int
    errors: int
    stats: str

    def add_action(self, model: str) -> AddAction:
        return AddAction(self.path, self.size, {"model": model}, int(time.time() * 1000), True, self.stats)


def row_key(uri: str, version: str) -> str:
    """One string for (image, version)."""
    return f"{uri}\n{version}"


def write_part(table_uri: str, model: str, rows: pa.Table) -> PartFile:
    """Write rows (of FILE_SCHEMA) as one file of the table's `model` partition, in one atomic step."""
    rows = rows.select(FILE_SCHEMA.names).cast(FILE_SCHEMA)
    # A random name: files of failed attempts are never named by the log, and none is ever overwritten.
    relative = f"model={model}/part-{uuid.uuid4().hex}.parquet"
    sink = pa.BufferOutputStream()
    # Masks are compressed already; what else there is repeats a lot.
    compression = {name: "none" if name == "mask" else "zstd" for name in FILE_SCHEMA.names}
    compression |= {"class_pixels.key_value.key": "zstd", "class_pixels.key_value.value": "zstd"}
    pq.write_table(
        rows, sink, compression=compression, use_dictionary=["status", "error", "refined", "run", "class_pixels.key_value.key"]
    )
    data = sink.getvalue().to_pybytes()  # copied once, not at each try
    size = storage.outlast(lambda: storage.write_whole(f"{table_uri}/{relative}", data))
    statistics: dict[str, Any] = {"numRecords": rows.num_rows, "minValues": {}, "maxValues": {}, "nullCount": {}}
    for name in STATISTICS:
        values = rows[name].to_pylist()
        statistics["minValues"][name], statistics["maxValues"][name] = min(values), max(values)
        statistics["nullCount"][name] = 0
    errors = sum(status != "ok" for status in rows["status"].to_pylist())
    return PartFile(relative, size, rows.num_rows, errors, json.dumps(statistics))


class ResultsSink(Datasink[list[PartFile]]):
    """Rows of one chunk -> part files -> one Delta commit under the chunk's application transaction.

    A killed writer leaves at most files that nobody names; a repeated commit finds the transaction in the log.
    `planned`: the table's version that the chunk was planned from. `replaced`: keys (`row_key`) whose older error rows
    the same commit takes out (`--retry-errors`). `counter`: the actor whose seconds by stage go into the log with the commit.
    """

    def __init__(
        self,
        table_uri: str,
        model: str,
        run: str,
        chunk: str,
        expected: int,
        planned: int,
        replaced: Sequence[str] = (),
        counter: Any = None,
    ) -> None:
        self.table_uri, self.model, self.run = table_uri, model, run
        self.chunk, self.expected, self.replaced = chunk, expected, list(replaced)
        self.planned, self.counter = planned, counter
        self.rows = self.errors = 0  # that the commit brought; other runs brought the rest of what was expected

    @property
    def min_rows_per_write(self) -> int | None:
        return ROWS_PER_FILE

    def write(self, blocks: Iterable[Any], ctx: Any) -> list[PartFile]:
        tables = [block if isinstance(block, pa.Table) else pa.Table.from_pandas(block, preserve_index=False) for block in blocks]
        tables = [table.select(FILE_SCHEMA.names).cast(FILE_SCHEMA) for table in tables if table.num_rows]
        return [write_part(self.table_uri, self.model, pa.concat_tables(tables))] if tables else []

    def on_write_complete(self, write_result: Any) -> None:
        parts = [part for returned in write_result.write_returns for part in returned]
        rows = sum(part.rows for part in parts)
        if rows != self.expected:
            raise RuntimeError(f"{self.chunk}: {rows} rows were written for {self.expected} images; nothing was committed")
        self._commit([part for part in parts if part.rows])

    def _seconds(self) -> dict[str, str]:
        """For the log; nothing where the counter's node is gone, which only display needs."""
        if self.counter is None:
            return {}
        with suppress(Exception):
            spent = ray.get(self.counter.totals.remote(), timeout=10)[2]
            return {"seconds": json.dumps({stage: round(value, 2) for stage, value in spent.items()})}
        return {}

    def _commit(self, parts: list[PartFile]) -> None:
        """Commit without a row that another run brought since the plan was made; again after each commit that came first."""
        table = ResultsTable.open(self.table_uri, patient=True)
        seen = set(_files_at(self.table_uri, self.model, self.planned))
        for attempt in range(COMMIT_TRIES):
            table.refresh()
            if table.knows(self.chunk):
                # An earlier try of ours whose answer was lost, or another run with the same work.
                if {part.path for part in parts} & set(table.files(self.model)):
                    self.rows, self.errors = sum(part.rows for part in parts), sum(part.errors for part in parts)
                return
            parts, seen = without_doubles(table, self.model, self.run, parts, seen)
            adds = [part.add_action(self.model) for part in parts]
            removes: list[RemoveAction] = []
            if self.replaced:
                rewritten, removes = without_errors(table, self.model, self.replaced)
                adds += rewritten
            rows, errors = sum(part.rows for part in parts), sum(part.errors for part in parts)
            counts = {**self._seconds(), "images": str(rows), "errors": str(errors)}
            try:
                table.commit(self.chunk, adds, removes, {"run": self.run, **counts}, writing=self.model)
                self.rows, self.errors = rows, errors
                return
            except CommitConflict:
                if attempt == COMMIT_TRIES - 1:
                    raise
                time.sleep(random.uniform(0, 0.2 * (attempt + 1)))


@lru_cache(maxsize=1)  # a run asks for the same at each of its chunks
def _files_at(table_uri: str, model: str, version: int) -> frozenset[str]:
    return frozenset(ResultsTable.open(table_uri, version, patient=True).files(model))


def without_doubles(
    table: ResultsTable, model: str, run: str, parts: list[PartFile], seen: set[str]
) -> tuple[list[PartFile], set[str]]:
    """`parts` without rows whose (image, version) files of other runs hold that are not in `seen`; and what is seen now."""
    files = table.files(model)
    theirs = [path for path, writer in files.items() if path not in seen and writer != run]
    if theirs:
        system, root = storage.filesystem(table.uri)

        def keys(path: str) -> pa.Array:
            head = pq.read_table(f"{root}/{path}", columns=["uri", "version"], filesystem=system, partitioning=None)
            return pc.binary_join_element_wise(head["uri"], head["version"], "\n").combine_chunks()

        taken = pa.concat_arrays([keys(path) for path in theirs])
        kept = []
        for part in parts:
            double = pc.is_in(keys(part.path), value_set=taken)
            if pc.any(double).as_py():
                rows = pq.read_table(f"{root}/{part.path}", filesystem=system, partitioning=None).filter(pc.invert(double))
                if rows.num_rows:
                    kept.append(write_part(table.uri, model, rows))
            else:
                kept.append(part)
        parts = kept
    return parts, set(files)


def without_errors(table: ResultsTable, model: str, keys: Sequence[str]) -> tuple[list[AddAction], list[RemoveAction]]:
    """Rewrite the files that hold error rows of these images without those rows: what to add and what to remove."""
    adds: list[AddAction] = []
    removes: list[RemoveAction] = []
    taken = pa.array(keys)
    partition = {"model": model}
    for fragment in table.dataset(model).get_fragments():
        head = fragment.to_table(columns=["uri", "version", "status"])
        key = pc.binary_join_element_wise(head["uri"], head["version"], "\n")
        old = pc.and_(pc.equal(head["status"], "error"), pc.is_in(key.cast(pa.string()), value_set=taken))
        if not pc.any(old).as_py():
            continue
        kept = fragment.to_table().filter(pc.invert(old))
        if kept.num_rows:
            adds.append(write_part(table.uri, model, kept).add_action(model))
        relative = fragment.path.rsplit("/", 2)
        removes.append(RemoveAction("/".join(relative[-2:]), True, int(time.time() * 1000), None, partition))
    return adds, removes
