"""Part files and the commits that make their rows part of the table.

These hold whatever dies and whoever else writes (docs/results-table.md; docs/reliability.md has a drill for each line):

1. A part file appears whole, under a random name, and is never overwritten. Readers do not see a file that the log does not name.
2. Commit n of a writer carries the application transaction (writer, n). Commit n + 1 starts once n is known to be in the log. So
   a lost answer is looked up, and no part is named twice. Each attempt of a run is a writer of its own.
3. Two commits of one model's rows exclude each other. The second one looks at the table again.
4. Each look leaves out rows of images that other writers committed since the plan was made.
5. A row that is replaced (`--retry-errors`, `--redo`) leaves the table in the commit that adds the new row.
6. A deleted part file is not named. Its images have no row: the run's check reports them, and the next run segments them.
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
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.transaction import AddAction, RemoveAction

from deeplab.safe_names import folder_of
from pipelines.archive.image_lists import MISSING
from pipelines.storage import filesystems
from pipelines.table.replacement import COLUMNS, NOTHING, Replacement
from pipelines.table.results_table import ResultsTable
from pipelines.table.schema import FILE_SCHEMA, with_added
from pipelines.table.table_errors import CommitConflict

ROWS_PER_FILE = 4000
COMMIT_TRIES = 50
VERSIONS = pa.schema([FILE_SCHEMA.field(name) for name in ("uri", "version", "read_version", *COLUMNS)])
# Longer text is cut in the log's statistics: Delta's readers accept a range that is wider than the file's values.
STATISTIC_CHARACTERS = 64
LARGEST = float(np.finfo(np.float32).max)
JSONValue = str | int | float | bool | None


class Statistics(TypedDict):
    """Delta's statistics of a file; keys are columns."""

    numRecords: int
    minValues: dict[str, JSONValue]
    maxValues: dict[str, JSONValue]
    nullCount: dict[str, int]


@dataclass(frozen=True)
class PartFile:
    """One Parquet file of the table that the log does not name yet.

    `path`: relative to the table; `stats`: Statistics as JSON. For display: the `seconds` that its rows took by stage, and its
    images by node (`nodes`).
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
    """The rows of a run in the table so far. `left_out`: rows that another run committed first; `version`: the table's."""

    images: int = 0
    errors: int = 0
    left_out: int = 0
    commits: int = 0
    version: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    nodes: Mapping[str, int] = field(default_factory=dict)


def remove_action(path: str, model: str) -> RemoveAction:
    """The action that removes a file of a model from the log; `path`: relative to the table, not encoded (`ResultsTable.files`)."""
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
    rows = with_added(rows).select(FILE_SCHEMA.names).cast(FILE_SCHEMA)
    relative = f"model={folder_of(model)}/part-{uuid.uuid4().hex}.parquet"
    sink = pa.BufferOutputStream()
    # Masks are compressed already; the other columns repeat a lot.
    compression = {name: "none" if name == "mask" else "zstd" for name in FILE_SCHEMA.names}
    compression |= {"class_pixels.key_value.key": "zstd", "class_pixels.key_value.value": "zstd"}
    repeated = ["status", "error", "refined", "scored", "run", "read_version", "class_pixels.key_value.key"]
    pq.write_table(rows, sink, compression=compression, use_dictionary=repeated)
    data = sink.getvalue().to_pybytes()  # copied once, not on every try
    size = filesystems.outlast(lambda: filesystems.write_whole(filesystems.below(table_uri, relative), data))
    errors = pc.sum(pc.not_equal(rows["status"], "ok")).as_py() or 0
    return PartFile(relative, size, rows.num_rows, errors, json.dumps(_statistics(rows)), seconds or {}, nodes or {})


def _statistics(rows: pa.Table) -> Statistics:
    """The nulls and ranges by which readers skip files, of every plain column: deltalake 1.6 takes an absent one for empty."""
    statistics = Statistics(numRecords=rows.num_rows, minValues={}, maxValues={}, nullCount={})
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        statistics["nullCount"][name] = column.null_count
        if pa.types.is_nested(column.type) or pa.types.is_binary(column.type) or column.null_count == rows.num_rows:
            continue
        low, high = pc.min_max(column).as_py().values()
        if isinstance(low, datetime):
            # Delta's timestamps have milliseconds: the range is rounded outwards.
            low = low.isoformat(timespec="milliseconds")
            high = (high + timedelta(milliseconds=1)).isoformat(timespec="milliseconds")
        elif isinstance(low, float) and not (math.isfinite(low) and math.isfinite(high)):
            low, high = -LARGEST, LARGEST  # JSON has no infinity and no NaN
        elif isinstance(low, str):
            low = low[:STATISTIC_CHARACTERS]
            high = high if len(high) <= STATISTIC_CHARACTERS else high[:STATISTIC_CHARACTERS] + chr(0x10FFFF)
        statistics["minValues"][name], statistics["maxValues"][name] = low, high
    return statistics


class Committer:
    """The commits of one run, one after the other. Not safe to share between threads.

    `planned`: the version of the table that the run was planned from. `replacing`: the rows that new rows of their images
    replace.
    """

    def __init__(self, table_uri: str, model: str, run: str, planned: int, replacing: Replacement = NOTHING) -> None:
        self.table = ResultsTable.open(table_uri, patient=True)
        self.model, self.run, self.replacing = model, run, replacing
        self.writer = f"{run}/{uuid.uuid4().hex[:8]}"
        # Files that need no look: those known to the plan, this writer's own, and those whose keys are in `foreign_keys`.
        self.known = set(ResultsTable.open(table_uri, planned, patient=True).files(model))
        self.foreign_keys: list[pa.Array] = []  # of rows that other writers committed since the plan was made
        self.waiting: list[PartFile] = []
        self.attempt: list[PartFile] = []  # the parts of a commit whose outcome is not known yet
        self.named: list[PartFile] = []  # the same without rows that its last try left out
        self.done = Committed(version=self.table.version)

    def add(self, parts: Iterable[PartFile]) -> None:
        """Add parts to the next commit."""
        self.waiting += parts

    @property
    def uncommitted(self) -> int:
        """Rows in part files that are not known to be in the table."""
        return sum(part.rows for part in (*self.attempt, *self.waiting))

    def commit(self) -> Committed:
        """Commit all added parts; returns what the run has in the table now.

        Safe to call again after any exception: a commit whose outcome is unknown is looked up first. Raises StorageError,
        CommitConflict after COMMIT_TRIES, or the error of a table that cannot be written.
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
                break  # an earlier try succeeded, but its answer was lost
            self.named = self._without_doubles(self._still_there(self.named))
            rewritten: list[PartFile] = []
            removes: list[RemoveAction] = []
            if self.replacing:
                rewritten, removes = without_rows(self.table, self.model, self._replaced(self.named), self.replacing)
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
        """The entries of a commit in the log, besides its files."""
        seconds: Counter[str] = Counter()
        for part in self.named:
            seconds.update(part.seconds)
        return {
            "run": self.run,
            "seconds": json.dumps({stage: round(value, 2) for stage, value in seconds.items()}),
            "images": str(sum(part.rows for part in self.named)),
            "errors": str(sum(part.errors for part in self.named)),
        }

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
        """The parts that nobody has deleted meanwhile, as `vacuum` does with old files that the log does not name."""
        stats = filesystems.stat_all([filesystems.below(self.table.uri, part.path) for part in parts])
        return [part for part, stat in zip(parts, stats, strict=True) if stat is not None]

    def _without_doubles(self, parts: list[PartFile]) -> list[PartFile]:
        """`parts` without rows of images that other writers committed since the plan was made."""
        for path in self.table.files(self.model).keys() - self.known:
            rows = self._read(path, VERSIONS)
            if self.replacing:
                rows = rows.filter(pc.invert(self.replacing.mask(rows)))
            self.foreign_keys += _keys(rows)
            self.known.add(path)
        if not self.foreign_keys:
            return parts
        foreign_keys = pa.chunked_array(self.foreign_keys, pa.string())
        kept = []
        for part in parts:
            double = pc.is_in(_keys(self._read(part.path, VERSIONS))[0], value_set=foreign_keys)
            if not pc.any(double).as_py():
                kept.append(part)
                continue
            rows = self._read(part.path, FILE_SCHEMA).filter(pc.invert(double))
            if rows.num_rows:
                kept.append(write_part(self.table.uri, self.model, rows, part.seconds, part.nodes))
        return kept

    def _read(self, path: str, columns: pa.Schema) -> pa.Table:
        """Columns of one of the table's files; null if a file of an earlier release lacks one."""
        system, root = filesystems.filesystem(self.table.uri)
        return filesystems.outlast(lambda: pq.read_table(f"{root}/{path}", schema=columns, filesystem=system, partitioning=None))

    def _replaced(self, parts: Sequence[PartFile]) -> list[str]:
        """Keys whose rows the parts replace. A row of a missing file is replaced by any row of that file."""
        keys = []
        for part in parts:
            rows = self._read(part.path, VERSIONS)
            for uri, version in zip(rows["uri"].to_pylist(), rows["version"].to_pylist(), strict=True):
                keys += [row_key(uri, version), row_key(uri, MISSING)]
        return keys


def _keys(rows: pa.Table) -> tuple[pa.Array, pa.Array]:
    """`row_key` of each row with its listed and with its read version; the latter is null if the two are the same."""
    keys = [pc.binary_join_element_wise(rows["uri"], rows[name], "\n") for name in ("version", "read_version")]
    return keys[0].cast(pa.string()).combine_chunks(), keys[1].cast(pa.string()).combine_chunks()


def without_rows(
    table: ResultsTable, model: str, keys: Sequence[str], replacing: Replacement
) -> tuple[list[PartFile], list[RemoveAction]]:
    """Rewrite the files that hold replaced rows of these images without those rows; returns the files to add and to remove."""
    parts: list[PartFile] = []
    removes: list[RemoveAction] = []
    if not keys:
        return parts, removes
    replaced, uris = pa.array(keys, pa.string()), [key.rpartition("\n")[0] for key in keys]
    # By the log's statistics most files are not opened.
    candidates = (pc.field("uri") >= min(uris)) & (pc.field("uri") <= max(uris))
    if replacing.others_than is None:
        candidates &= pc.field("status") == "error"
    for fragment in table.dataset(model).get_fragments(candidates):
        versions = fragment.to_table(schema=FILE_SCHEMA, columns=VERSIONS.names)
        listed, read = (pc.is_in(key, value_set=replaced) for key in _keys(versions))
        old = pc.and_(replacing.mask(versions), pc.fill_null(pc.or_kleene(listed, read), False))
        if not pc.any(old).as_py():
            continue
        kept = fragment.to_table(schema=FILE_SCHEMA).filter(pc.invert(old))
        if kept.num_rows:
            parts.append(write_part(table.uri, model, kept))
        removes.append(remove_action(fragment.path, model))
    return parts, removes
