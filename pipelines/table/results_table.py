"""The results table: a Delta Lake table with exactly one row per (image, version, model)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, CommitProperties, PostCommitHookProperties, RemoveAction, Transaction

from deeplab.classes import ClassTable
from deeplab.files import MARKER, MARKER_TEXT
from pipelines.sql import connect
from pipelines.storage import filesystems, s3
from pipelines.table.schema import ADDED, FORMAT, FORMAT_KEY, MODEL_KEY, SCHEMA, SKIPPING, same_type
from pipelines.table.table_errors import CommitConflict, ResultsError, delta_reason, delta_trouble, storage_trouble

ALTER_TRIES = 10
CHECKPOINT_EVERY = 100  # commits, Delta's default: a reader of the log reads at most so many entries one by one


def open_part(table_uri: str, path: str) -> pq.ParquetFile:
    """A Parquet file of a table. OSError if it is gone, ArrowInvalid if it is not Parquet."""
    system, root = filesystems.filesystem(table_uri)
    # No buffering ahead: whole columns of masks would pile up before a slow reader.
    return pq.ParquetFile(f"{root}/{path}", filesystem=system, pre_buffer=False)


class ResultsTable:
    """One results table, local or on S3. `open` opens an existing table; `ensure` creates one if there is none."""

    def __init__(self, uri: str, delta: DeltaTable) -> None:
        self.uri = uri
        self.delta = delta

    @classmethod
    def open(cls, uri: str, version: int | None = None, patient: bool = False) -> ResultsTable:
        """The table at `uri`, now or at `version`. `patient`: wait for a store that is down, as a run should.

        ResultsError if there is none, it is not a results table, or its schema is of another version; StorageError for a place
        that cannot hold one.
        """
        uri = filesystems.canonical(uri)
        location = filesystems.delta_location(uri)
        try:
            delta = DeltaTable(location, version=version, storage_options=filesystems.delta_options(uri, patient))
        except TableNotFoundError as error:
            other = "the folder holds something else: name the one that `deeplab segment` wrote"
            advice = f"`deeplab segment ARCHIVE {uri}` creates one" if _is_free(uri) else other
            raise ResultsError(f"{uri}: no results table here; {advice}") from error
        except (DeltaError, OSError) as error:
            raise delta_trouble(uri, "the table cannot be read", error) from error
        table_format = delta.metadata().configuration.get(FORMAT_KEY)
        if table_format is None:
            raise ResultsError(f"{uri}: a Delta table, but not a results table; choose another place")
        if table_format != FORMAT:
            raise ResultsError(f"{uri}: a results table of format {table_format!r}; this version reads and writes {FORMAT!r}")
        types = {field.name: field.type for field in _columns(delta)}
        expected = [field for field in SCHEMA if field.name in types or field not in ADDED]
        wrong = [f"{f.name} {types.get(f.name, 'missing')}" for f in expected if not same_type(types.get(f.name), f.type)]
        if wrong:
            raise ResultsError(f"{uri}: columns differ from this version's schema: {', '.join(wrong)}")
        return cls(uri, delta)

    @classmethod
    def ensure(cls, uri: str) -> ResultsTable:
        """The table at `uri` for a run, with this release's columns; created empty if there is none.

        ResultsError for a place that holds something else.
        """
        uri = filesystems.canonical(uri)
        location = filesystems.delta_location(uri)  # refuses an impossible place before anything is created there
        if not filesystems.is_s3(uri):
            path = filesystems.local_path(uri)
            if not _is_free(uri) and not (path / "_delta_log").is_dir():
                raise ResultsError(f"{path}: holds something other than a results table; choose an empty or new folder")
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ResultsError(f"{path}: cannot be created ({error.strerror})") from error
            if not os.access(path, os.W_OK):
                raise ResultsError(f"{path}: no permission to write there")
        else:
            s3.require_conditional_put(uri)
        if not _is_table(uri):
            if filesystems.is_s3(uri) and not _is_free(uri) and not _is_table(uri):  # another run may just have created it
                raise ResultsError(f"{uri}: holds something other than a results table; choose an empty or new prefix")
            try:
                DeltaTable.create(
                    location,
                    SCHEMA,
                    mode="ignore",
                    partition_by=["model"],
                    description="Segmentation masks, one row per image, version and model",
                    configuration={FORMAT_KEY: FORMAT},
                    storage_options=filesystems.delta_options(uri),
                    raise_if_key_not_exists=False,
                    # A retry would add its first version after another run's.
                    commit_properties=CommitProperties(max_commit_retries=0),
                )
            except (DeltaError, OSError) as error:
                if not _is_table(uri):
                    raise delta_trouble(uri, "a table cannot be created", error) from error
        table = cls.open(uri, patient=True)
        table._add_columns()
        place = filesystems.files(uri)
        if not place.has(MARKER):
            place.write(MARKER, MARKER_TEXT)
        return table

    def refresh(self) -> None:
        """Read the commits since the table was opened. Raises StorageError."""
        with storage_trouble(self.uri):
            self.delta.update_incremental()

    @property
    def version(self) -> int:
        return int(self.delta.version())

    def models(self) -> dict[str, dict[str, Any]]:
        """Cards of the models that have written to the table, by label (name@digest)."""
        configuration = self.delta.metadata().configuration
        return {key.removeprefix(MODEL_KEY): json.loads(value) for key, value in configuration.items() if key.startswith(MODEL_KEY)}

    def classes(self, model: str) -> ClassTable:
        """The class table of a model's masks. ResultsError for a model that never wrote here."""
        cards = self.models()
        if model not in cards:
            raise ResultsError(f"{self.uri}: no rows of model {model}; {_accepted(cards)}")
        entries = cards[model]["classes"]
        return ClassTable(tuple(e["name"] for e in entries), tuple(tuple(e["colour"]) for e in entries))

    def pick_model(self, reference: str | None) -> str:
        """The label of a model from its label or bare name; None is the latest model. ResultsError if there is no such model."""
        labels = list(self.models())
        if reference is None and labels:
            latest = self.query("SELECT model FROM results GROUP BY model ORDER BY max(segmented_at) DESC LIMIT 1").fetchone()
            return latest[0] if latest else labels[-1]
        matching = [label for label in labels if reference in (label, label.split("@")[0])]
        if not matching:
            raise ResultsError(f"{self.uri}: no rows of model {reference}; {_accepted(labels)}")
        return matching[-1]

    def register(self, model: str, card: Mapping[str, Any]) -> None:
        """Store a model's card once, so that its masks keep their meaning. ResultsError if the log refuses the entry."""
        properties = {MODEL_KEY + model: json.dumps(card)}
        self._alter(
            lambda: model in self.models(),
            lambda: self.delta.alter.set_table_properties(properties, raise_if_not_exists=False),
            f"the card of {model}",
        )

    def _add_columns(self) -> None:
        """Add the columns of ADDED to a table of an earlier release; they are null in its files, which do not change."""
        absent = [field for field in ADDED if field.name not in _columns(self.delta).names]
        self._alter(
            lambda: {field.name for field in absent} <= set(_columns(self.delta).names),
            lambda: self.delta.alter.add_columns(DeltaSchema.from_arrow(pa.schema(absent)).fields),
            f"the columns {', '.join(field.name for field in absent)}",
        )

    def _alter(self, done: Callable[[], bool], change: Callable[[], None], subject: str) -> None:
        """Make `change` to the table's metadata until it is `done`. ResultsError, which names `subject`, if the log refuses it."""
        for left in reversed(range(ALTER_TRIES)):
            if done():
                return
            try:
                with storage_trouble(self.uri):
                    change()
            except CommitFailedError as error:  # another run changed the table just now, perhaps with the same change
                if not left:
                    raise ResultsError(f"{self.uri}: the log refused {subject} ({delta_reason(error)}); try again") from error
            self.refresh()

    def dataset(self, model: str | None = None) -> pads.Dataset:
        """All rows, or those of one model, as a pyarrow dataset; columns that the table does not have yet are null."""
        system, root = filesystems.filesystem(self.uri)
        rows = self.delta.to_pyarrow_dataset(
            # Arrow's threads would call into the Delta library's own file system, which is Python: a call at the end of the
            # interpreter aborts the process ("terminate called without an active exception").
            filesystem=pafs.SubTreeFileSystem(root, system),
            file_pruning_predicate=[("model", "=", model)] if model else None,
        )
        schema = pa.schema([*rows.schema, *(field for field in ADDED if field.name not in rows.schema.names)])
        ranges = self._ranges()
        # For a column without statistics in the log, deltalake 1.6 guarantees Arrow values between null and null, so that a
        # filter on it passes nothing, or all. Here files guarantee only what the log states.
        fragments = []
        for fragment in rows.get_fragments():
            guarantee = pc.field("model") == pads.get_partition_keys(fragment.partition_expression)["model"]
            for name, low, high in ranges.get(fragment.path, ()):
                guarantee &= (pc.field(name) >= low) & (pc.field(name) <= high)
            fragments.append(rows.format.make_fragment(fragment.path, rows.filesystem, guarantee))
        return pads.FileSystemDataset(fragments, schema, rows.format, rows.filesystem)

    def _ranges(self) -> dict[str, list[tuple[str, str, str]]]:
        """(column, smallest, largest) of the columns whose filters should skip files, by the path of the file."""
        actions = pa.table(self.delta.get_add_actions(flatten=True))
        ranges: dict[str, list[tuple[str, str, str]]] = {}
        for name in SKIPPING:
            if f"min.{name}" in actions.column_names:
                columns = [actions[column].to_pylist() for column in ("path", f"min.{name}", f"max.{name}")]
                for path, low, high in zip(*columns, strict=True):
                    if low is not None and high is not None:
                        ranges.setdefault(path, []).append((name, low, high))
        return ranges

    def query(self, sql: str, parameters: Sequence[object] = (), model: str | None = None) -> duckdb.DuckDBPyConnection:
        """Run SQL with DuckDB; the table is called `results`. The result has fetchall(), fetchone(), df() and others."""
        connection = connect()
        connection.register("results", self.dataset(model))
        with self.reading():
            return connection.execute(sql, list(parameters))

    def last_commit(self, run: str) -> int:
        """The number of a run's newest commit in the log as last read (see `refresh`); 0 for none."""
        with storage_trouble(self.uri):
            return int(self.delta.transaction_version(run) or 0)

    def files(self, model: str) -> dict[str, str | None]:
        """The Parquet files of a model's rows, each with the run that wrote it (None: several).

        Paths are relative to the table and decoded: the log has URIs, in which `%20` is a space of the file's name.
        """
        actions = pa.table(self.delta.get_add_actions(flatten=True))
        if not actions.num_rows:
            return {}
        names = ("path", "partition.model", "min.run", "max.run")
        columns = [actions[name].to_pylist() if name in actions.column_names else [None] * actions.num_rows for name in names]
        return {unquote(path): low if low == high else None for path, of, low, high in zip(*columns, strict=True) if of == model}

    def open_file(self, path: str) -> pq.ParquetFile:
        """One of `files`, or a part that is not committed yet; errors as `open_part`."""
        return open_part(self.uri, path)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turns errors of reading rows in the body, where a file that the log names is gone or damaged, into ResultsError."""
        try:
            yield
        except (FileNotFoundError, pa.ArrowInvalid, duckdb.InvalidInputException) as error:
            reason = delta_reason(error)
            raise ResultsError(f"{self.uri}: rows cannot be read ({reason}); `deeplab verify` says what is wrong") from error

    def commit(
        self,
        run: str,
        number: int,
        adds: Sequence[AddAction],
        removes: Sequence[RemoveAction] = (),
        notes: dict[str, str] | None = None,
        *,
        model: str,
    ) -> None:
        """Add files with rows of `model` to the table in one step, as commit `number` (1, 2, ...) of a run.

        CommitConflict if another commit of that model's rows came since the last `refresh`; the caller looks again. A reader sees
        all of the commit or nothing. Raises StorageError.
        """
        # Delta's rule: concurrent commits that name the same application exclude each other.
        transactions = [Transaction(run, number), Transaction(f"deeplab-rows/{model}", self.version + 1)]
        try:
            with storage_trouble(self.uri):
                self.delta.create_write_transaction(
                    [*removes, *adds],
                    mode="append",
                    schema=SCHEMA,
                    partition_by=["model"],
                    commit_properties=CommitProperties(app_transactions=transactions, custom_metadata=notes or {}),
                    post_commithook_properties=self._after_commit(),
                )
        except CommitFailedError as error:
            raise CommitConflict(f"{self.uri}: another commit came first ({delta_reason(error)})") from error
        self.refresh()

    def _after_commit(self) -> PostCommitHookProperties:
        """Write a checkpoint and remove expired log entries only when due: to look for them takes as long as the commit."""
        due = (self.version + 2) % CHECKPOINT_EVERY == 0  # after version 99, 199, ..., where Delta's readers expect it
        return PostCommitHookProperties(create_checkpoint=due, cleanup_expired_logs=None if due else False)


def _accepted(labels: Collection[str]) -> str:
    return f"there are: {', '.join(labels) or 'none'}"


def _is_free(uri: str) -> bool:
    """Whether a place is nowhere yet, or an empty folder or prefix."""
    if filesystems.is_s3(uri):
        return s3.is_free(uri)
    path = filesystems.local_path(uri)
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _is_table(uri: str) -> bool:
    try:
        return bool(DeltaTable.is_deltatable(filesystems.delta_location(uri), filesystems.delta_options(uri)))
    except (DeltaError, OSError) as error:
        raise delta_trouble(uri, "the Delta library cannot look for a table there", error) from error


def _columns(delta: DeltaTable) -> pa.Schema:
    return pa.schema(delta.schema().to_arrow())
