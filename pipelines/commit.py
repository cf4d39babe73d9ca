"""From part files that nobody sees to rows of the table: what is named in the log, and when.

What holds, whatever dies and whoever else writes (docs/results-table.md; each line has its drill in docs/reliability.md):

1. A part file appears whole, under a random name, and is never overwritten. A file that the log does not name is not there.
2. Commit n of a run carries the application transaction (run, n). Commit n + 1 begins when n is known to be in the log, so an
   answer that was lost is looked up and the same parts are never named twice.
3. Two commits of one model's rows exclude each other. Who comes second looks again at what is there.
4. At each look, rows of images that another run's files brought since the plan was made are left out.
5. An error row that is replaced (`--retry-errors`) leaves the table in the commit that brings the new row.
6. A part file that somebody deleted is not named. Its images have no row, which the run's check says, and the next run does them.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.transaction import AddAction, RemoveAction

from pipelines import storage
from pipelines.inventory import MISSING
from pipelines.results import FILE_SCHEMA, CommitConflict, ResultsTable

ROWS_PER_FILE = 4000
COMMIT_TRIES = 50
STATISTICS = ("uri", "status", "run")  # columns whose range goes into the log, for readers that skip files


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
    smallest, largest = {}, {}
    for name in STATISTICS:
        ends = pc.min_max(rows[name]).as_py()
        smallest[name], largest[name] = ends["min"], ends["max"]
    statistics = {"numRecords": rows.num_rows, "minValues": smallest, "maxValues": largest, "nullCount": dict.fromkeys(STATISTICS, 0)}
    errors = pc.sum(pc.not_equal(rows["status"], "ok")).as_py() or 0
    return PartFile(relative, size, rows.num_rows, errors, json.dumps(statistics), seconds or {}, nodes or {})


class Committer:
    """One run's commits, one after the other. Not safe to share between threads.

    `planned`: the version of the table that the run was planned from. `replacing`: error rows of the images that arrive
    give way to their new rows.
    """

    def __init__(self, table_uri: str, model: str, run: str, planned: int, replacing: bool = False) -> None:
        self.table = ResultsTable.open(table_uri, patient=True)
        self.model, self.run, self.replacing = model, run, replacing
        self.seen = set(ResultsTable.open(table_uri, planned, patient=True).files(model))
        self.waiting: list[PartFile] = []
        self.attempt: list[PartFile] = []  # the parts of commit `done.commits + 1`, whose outcome may be unknown
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
            self._commit_attempt()
        return self.done

    def _commit_attempt(self) -> None:
        number = self.done.commits + 1
        for left in reversed(range(COMMIT_TRIES)):
            self.table.refresh()
            if self.table.last_commit(self.run) < number:
                parts = self._still_there(self.attempt)
                parts, files = self._without_doubles(parts)
                adds, removes = [part.add_action(self.model) for part in parts], []
                if self.replacing:
                    rewritten, removes = without_errors(self.table, self.model, self._keys_with_missing(parts))
                    adds += rewritten
                counts = {"images": sum(part.rows for part in parts), "errors": sum(part.errors for part in parts)}
                notes = {"run": self.run, **{name: str(count) for name, count in counts.items()}, "seconds": _seconds_note(parts)}
                try:
                    self.table.commit(self.run, number, adds, removes, notes, model=self.model)
                except CommitConflict:
                    if not left:
                        raise
                    time.sleep(random.uniform(0, 0.2 * (COMMIT_TRIES - left)))
                    continue
                self.seen = files
                self._settle(parts)
            else:  # an earlier try went through although its answer was lost
                self._settle(self.attempt)
            return

    def _settle(self, parts: Sequence[PartFile]) -> None:
        done, rows = self.done, sum(part.rows for part in parts)
        seconds, nodes = Counter(done.seconds), Counter(done.nodes)
        for part in self.attempt:
            seconds.update(part.seconds)
            nodes.update(part.nodes)
        self.done = replace(
            done,
            images=done.images + rows,
            errors=done.errors + sum(part.errors for part in parts),
            left_out=done.left_out + sum(part.rows for part in self.attempt) - rows,
            commits=done.commits + 1,
            version=self.table.version,
            seconds=dict(seconds),
            nodes=dict(nodes),
        )
        self.attempt = []

    def _still_there(self, parts: Sequence[PartFile]) -> list[PartFile]:
        """The parts that nobody deleted since they were written, as `vacuum` does with files that are older than it is told."""
        stats = storage.stat_all([f"{self.table.uri}/{part.path}" for part in parts])
        return [part for part, stat in zip(parts, stats, strict=True) if stat is not None]

    def _without_doubles(self, parts: list[PartFile]) -> tuple[list[PartFile], set[str]]:
        """`parts` without rows that files of other runs brought since the plan was made, and the files that are there now."""
        files = self.table.files(self.model)
        theirs = [path for path, writer in files.items() if path not in self.seen and writer != self.run]
        if not theirs:
            return parts, set(files)
        taken = pa.concat_arrays([self._keys(path, replaced=self.replacing) for path in theirs])
        kept = []
        for part in parts:
            double = pc.is_in(self._keys(part.path), value_set=taken)
            if not pc.any(double).as_py():
                kept.append(part)
                continue
            rows = self._read(part.path).filter(pc.invert(double))
            if rows.num_rows:
                kept.append(write_part(self.table.uri, self.model, rows, part.seconds, part.nodes))
        return kept, set(files)

    def _read(self, path: str, columns: list[str] | None = None) -> pa.Table:
        system, root = storage.filesystem(self.table.uri)
        return storage.outlast(lambda: pq.read_table(f"{root}/{path}", columns=columns, filesystem=system, partitioning=None))

    def _keys(self, path: str, replaced: bool = False) -> pa.Array:
        """The key of each row of a file; `replaced`: not of its error rows, which give way."""
        head = self._read(path, ["uri", "version", "status"])
        if replaced:
            head = head.filter(pc.equal(head["status"], "ok"))
        return pc.binary_join_element_wise(head["uri"], head["version"], "\n").combine_chunks()

    def _keys_with_missing(self, parts: Sequence[PartFile]) -> list[str]:
        """Keys whose error rows the parts replace. A row for a file that was not there gives way to any row for it."""
        keys = []
        for part in parts:
            head = self._read(part.path, ["uri", "version"])
            for uri, version in zip(head["uri"].to_pylist(), head["version"].to_pylist(), strict=True):
                keys += [row_key(uri, version), row_key(uri, MISSING)]
        return keys


def _seconds_note(parts: Sequence[PartFile]) -> str:
    seconds: Counter[str] = Counter()
    for part in parts:
        seconds.update(part.seconds)
    return json.dumps({stage: round(value, 2) for stage, value in seconds.items()})


def without_errors(table: ResultsTable, model: str, keys: Sequence[str]) -> tuple[list[AddAction], list[RemoveAction]]:
    """Rewrite the files that hold error rows of these images without those rows: what to add and what to remove."""
    adds: list[AddAction] = []
    removes: list[RemoveAction] = []
    taken = pa.array(keys, pa.string())
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
