"""From part files that nobody sees to rows of the table: what is named in the log, and when.

What holds, whatever dies and whoever else writes (docs/results-table.md; each line has its drill in docs/reliability.md):

1. A part file appears whole, under a random name, and is never overwritten. A file that the log does not name is not there.
2. Commit n of a writer carries the application transaction (writer, n). Commit n + 1 begins when n is known to be in the log, so
   an answer that was lost is looked up and the same parts are never named twice. Each try of a run is a writer of its own.
3. Two commits of one model's rows exclude each other. Who comes second looks again at what is there.
4. At each look, rows of images that other writers' files brought since the plan was made are left out.
5. An error row that is replaced (`--retry-errors`) leaves the table in the commit that brings the new row.
6. A part file that somebody deleted is not named. Its images have no row, which the run's check says, and the next run does them.
"""

from __future__ import annotations

import json
import math
import random
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.transaction import AddAction, RemoveAction

from deeplab.names import folder_of
from pipelines.archive.image_lists import MISSING
from pipelines.storage import filesystems
from pipelines.table.results_table import ResultsTable
from pipelines.table.schema import FILE_SCHEMA
from pipelines.table.table_errors import CommitConflict

ROWS_PER_FILE = 4000
COMMIT_TRIES = 50
VERSIONS = pa.schema([FILE_SCHEMA.field(name) for name in ("uri", "version", "read_version", "status")])
# Text that goes into the log's statistics. Delta's readers take a range that is wider than what the file holds.
STATISTIC_CHARACTERS = 64
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class PartFile:
    """One Parquet file that was written for the table and is not yet named by the log.

    `path` is relative to the table, `stats` the Delta statistics in JSON. `seconds` by stage and images by node are what its
    rows took and where they were made, for display.
    """

    path: str
    size: int
    rows: int
    errors: int
    stats: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    nodes: Mapping[str, int] = field(default_factory=dict)

    def add_action(self, model: str) -> AddAction:
        return AddAction(self.path, self.size, {"model": model}, int(time.time() * 1000), True, self.stats)


@dataclass(frozen=True)
class Committed:
    """What a run has in the table so far. `left_out`: rows that another run brought first; `version`: the table's."""

    images: int = 0
    errors: int = 0
    left_out: int = 0
    commits: int = 0
    version: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    nodes: Mapping[str, int] = field(default_factory=dict)


def remove_action(path: str, model: str) -> RemoveAction:
    """What takes a file of a model out of the log; `path` is relative to the table, with nothing encoded (`ResultsTable.files`)."""
    return RemoveAction(path, True, int(time.time() * 1000), None, {"model": model})


def row_key(uri: str, version: str) -> str:
    """One string for (image, version)."""
    return f"{uri}\n{version}"


def write_part(
    table_uri: str,
    model: str,
    rows: pa.Table,
    seconds: Mapping[str, float] | None = None,
    nodes: Mapping[str, int] | None = None,
) -> PartFile:
    """Write rows (of FILE_SCHEMA) as one file of the table's `model` partition, in one atomic step."""
    rows = rows.select(FILE_SCHEMA.names).cast(FILE_SCHEMA)
    # A random name: files of failed attempts are never named by the log, and none is ever overwritten.
    relative = f"model={folder_of(model)}/part-{uuid.uuid4().hex}.parquet"
    sink = pa.BufferOutputStream()
    # Masks are compressed already; what else there is repeats a lot.
    compression = {name: "none" if name == "mask" else "zstd" for name in FILE_SCHEMA.names}
    compression |= {"class_pixels.key_value.key": "zstd", "class_pixels.key_value.value": "zstd"}
    repeated = ["status", "error", "refined", "run", "read_version", "class_pixels.key_value.key"]
    pq.write_table(rows, sink, compression=compression, use_dictionary=repeated)
    data = sink.getvalue().to_pybytes()  # copied once, not at each try
    size = filesystems.outlast(lambda: filesystems.write_whole(filesystems.below(table_uri, relative), data))
    errors = pc.sum(pc.not_equal(rows["status"], "ok")).as_py() or 0
    return PartFile(relative, size, rows.num_rows, errors, json.dumps(_statistics(rows)), seconds or {}, nodes or {})


def _statistics(rows: pa.Table) -> dict[str, Any]:
    """What Delta's log says of a file, for readers that skip files: of every plain column its nulls and its range.

    Of every one, as deltalake 1.6 takes a column that is left out for one without values.
    """
    low: dict[str, Any] = {}
    high: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        nulls[name] = column.null_count
        if pa.types.is_nested(column.type) or pa.types.is_binary(column.type) or column.null_count == rows.num_rows:
            continue
        low[name], high[name] = pc.min_max(column).as_py().values()
        if isinstance(low[name], datetime):
            # Delta's timestamps have milliseconds; they are rounded away from what lies between.
            low[name] = low[name].isoformat(timespec="milliseconds")
            high[name] = (high[name] + timedelta(milliseconds=1)).isoformat(timespec="milliseconds")
        elif isinstance(low[name], float) and not (math.isfinite(low[name]) and math.isfinite(high[name])):
            low[name], high[name] = -LARGEST, LARGEST  # JSON has no word for what is not finite
        elif isinstance(low[name], str):
            low[name] = low[name][:STATISTIC_CHARACTERS]
            if len(high[name]) > STATISTIC_CHARACTERS:
                high[name] = high[name][:STATISTIC_CHARACTERS] + chr(0x10FFFF)
    return {"numRecords": rows.num_rows, "minValues": low, "maxValues": high, "nullCount": nulls}


class Committer:
    """One run's commits, one after the other. Not safe to share between threads.

    `planned`: the version of the table that the run was planned from. `replacing`: error rows of the images that arrive
    give way to their new rows.
    """

    def __init__(self, table_uri: str, model: str, run: str, planned: int, replacing: bool = False) -> None:
        self.table = ResultsTable.open(table_uri, patient=True)
        self.model, self.run, self.replacing = model, run, replacing
        self.writer = f"{run}/{uuid.uuid4().hex[:8]}"
        # Files that need no look: those that the plan knows, this writer's own, and those whose keys are in `brought`.
        self.known = set(ResultsTable.open(table_uri, planned, patient=True).files(model))
        self.brought: list[pa.Array] = []  # keys of the rows that others brought since the plan was made
        self.waiting: list[PartFile] = []
        self.attempt: list[PartFile] = []  # the parts of the next commit, from when it is tried until its outcome is known
        self.named: list[PartFile] = []  # the same without what its last try left out
        self.done = Committed(version=self.table.version)

    def add(self, parts: Iterable[PartFile]) -> None:
        """Parts to be named by the next commit."""
        self.waiting += parts

    @property
    def uncommitted(self) -> int:
        """Rows in part files that are not known to be in the table."""
        return sum(part.rows for part in (*self.attempt, *self.waiting))

    def commit(self) -> Committed:
        """Name all that was added; returns what the run has in the table now.

        Safe to call again after any exception: parts whose commit has an unknown outcome are looked up first. Raises
        StorageError, CommitConflict after COMMIT_TRIES, or whatever a table that cannot be written raises.
        """
        while self.attempt or self.waiting:
            if not self.attempt:
                self.attempt, self.waiting = self.waiting, []
                self.named = self.attempt
            self._commit_attempt()
        return self.done

    def _commit_attempt(self) -> None:
        number = self.done.commits + 1
        for left in reversed(range(COMMIT_TRIES)):
            self.table.refresh()
            if self.table.last_commit(self.writer) >= number:
                break  # an earlier try went through although its answer was lost
            self.named = self._without_doubles(self._still_there(self.named))
            rewritten: list[PartFile] = []
            removes: list[RemoveAction] = []
            if self.replacing:
                rewritten, removes = without_errors(self.table, self.model, self._replaced(self.named))
            parts = [*self.named, *rewritten]
            self.known |= {part.path for part in parts}
            adds = [part.add_action(self.model) for part in parts]
            try:
                self.table.commit(self.writer, number, adds, removes, self._notes(), model=self.model)
                break
            except CommitConflict:
                if not left:
                    raise
                time.sleep(random.uniform(0, 0.2 * (COMMIT_TRIES - left)))
        self._settle()

    def _notes(self) -> dict[str, str]:
        """What the log says of a commit, besides its files."""
        seconds: Counter[str] = Counter()
        for part in self.named:
            seconds.update(part.seconds)
        counts = {"images": sum(part.rows for part in self.named), "errors": sum(part.errors for part in self.named)}
        spent = json.dumps({stage: round(value, 2) for stage, value in seconds.items()})
        return {"run": self.run, "seconds": spent, **{name: str(count) for name, count in counts.items()}}

    def _settle(self) -> None:
        done, rows = self.done, sum(part.rows for part in self.named)
        seconds, nodes = Counter(done.seconds), Counter(done.nodes)
        for part in self.attempt:
            seconds.update(part.seconds)
            nodes.update(part.nodes)
        self.done = Committed(
            images=done.images + rows,
            errors=done.errors + sum(part.errors for part in self.named),
            left_out=done.left_out + sum(part.rows for part in self.attempt) - rows,
            commits=done.commits + 1,
            version=self.table.version,
            seconds=dict(seconds),
            nodes=dict(nodes),
        )
        self.attempt, self.named = [], []

    def _still_there(self, parts: Sequence[PartFile]) -> list[PartFile]:
        """The parts that nobody deleted since they were written, as `vacuum` does with files that are older than it is told."""
        stats = filesystems.stat_all([filesystems.below(self.table.uri, part.path) for part in parts])
        return [part for part, stat in zip(parts, stats, strict=True) if stat is not None]

    def _without_doubles(self, parts: list[PartFile]) -> list[PartFile]:
        """`parts` without rows that files of other writers brought since the plan was made."""
        for path in self.table.files(self.model).keys() - self.known:
            rows = self._read(path, VERSIONS)
            if self.replacing:  # error rows give way
                rows = rows.filter(pc.equal(rows["status"], "ok"))
            self.brought += _keys(rows)
            self.known.add(path)
        if not self.brought:
            return parts
        taken = pa.chunked_array(self.brought, pa.string())
        kept = []
        for part in parts:
            double = pc.is_in(_keys(self._read(part.path, VERSIONS))[0], value_set=taken)
            if not pc.any(double).as_py():
                kept.append(part)
                continue
            rows = self._read(part.path, FILE_SCHEMA).filter(pc.invert(double))
            if rows.num_rows:
                kept.append(write_part(self.table.uri, self.model, rows, part.seconds, part.nodes))
        return kept

    def _read(self, path: str, columns: pa.Schema) -> pa.Table:
        """Columns of one of the table's files; null where a file of an earlier release has none."""
        system, root = filesystems.filesystem(self.table.uri)
        return filesystems.outlast(lambda: pq.read_table(f"{root}/{path}", schema=columns, filesystem=system, partitioning=None))

    def _replaced(self, parts: Sequence[PartFile]) -> list[str]:
        """Keys whose error rows the parts replace. A row for a file that was not there gives way to any row for it."""
        keys = []
        for part in parts:
            rows = self._read(part.path, VERSIONS)
            for uri, version in zip(rows["uri"].to_pylist(), rows["version"].to_pylist(), strict=True):
                keys += [row_key(uri, version), row_key(uri, MISSING)]
        return keys


def _keys(rows: pa.Table) -> tuple[pa.Array, pa.Array]:
    """`row_key` of each row by its listed and by its read version, the latter null where that is the same."""
    keys = [pc.binary_join_element_wise(rows["uri"], rows[name], "\n") for name in ("version", "read_version")]
    return keys[0].cast(pa.string()).combine_chunks(), keys[1].cast(pa.string()).combine_chunks()


def without_errors(table: ResultsTable, model: str, keys: Sequence[str]) -> tuple[list[PartFile], list[RemoveAction]]:
    """Rewrite the files that hold error rows of these images without those rows: what to add and what to remove."""
    parts: list[PartFile] = []
    removes: list[RemoveAction] = []
    taken = pa.array(keys, pa.string())
    for fragment in table.dataset(model).get_fragments(pc.field("status") == "error"):  # by the log's statistics
        head = fragment.to_table(schema=FILE_SCHEMA, columns=VERSIONS.names)
        listed, read = (pc.is_in(key, value_set=taken) for key in _keys(head))
        old = pc.and_(pc.equal(head["status"], "error"), pc.or_(listed, read))
        if not pc.any(old).as_py():
            continue
        kept = fragment.to_table(schema=FILE_SCHEMA).filter(pc.invert(old))
        if kept.num_rows:
            parts.append(write_part(table.uri, model, kept))
        removes.append(remove_action(fragment.path, model))
    return parts, removes
