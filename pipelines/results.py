"""The results table: a Delta Lake table with exactly one row per (image, version, model)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, CommitProperties, PostCommitHookProperties, RemoveAction, Transaction

from deeplab.classes import ClassTable
from deeplab.errors import UserError
from pipelines import s3, storage

SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("mask", pa.binary()),
        pa.field("class_pixels", pa.map_(pa.string(), pa.int64())),
        pa.field("confidence", pa.float32()),
        pa.field("model", pa.string(), nullable=False),
        pa.field("refined", pa.string()),
        pa.field("run", pa.string(), nullable=False),
        pa.field("segmented_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
# In the files themselves the partition column is left out: readers take it from the log, or from the folder's name.
FILE_SCHEMA = SCHEMA.remove(SCHEMA.get_field_index("model"))
FORMAT_KEY, FORMAT = "deeplab.format", "results/1"
MODEL_KEY = "deeplab.model."
REGISTER_TRIES = 10
CHECKPOINT_EVERY = 100  # commits, as is Delta's default: what a reader of the log then has to read one by one


class ResultsError(UserError):
    """The results table cannot be used; the message says what is there and what is accepted."""


class CommitConflict(UserError):
    """Another run committed at the same time; look at what it brought and commit again."""


class ResultsTable:
    """One results table, local or on S3. Use `open` for one that must exist and `ensure` to create it if need be."""

    def __init__(self, uri: str, delta: DeltaTable) -> None:
        self.uri = uri
        self.delta = delta

    @classmethod
    def open(cls, uri: str, version: int | None = None, patient: bool = False) -> ResultsTable:
        """The table at `uri`, as it is now or was at `version`. `patient`: outages of the store are outlasted, as a run should.

        ResultsError when there is none, it is another's, or its schema is of another version.
        """
        uri = storage.canonical(uri)
        try:
            options = storage.delta_options(uri, patient)
            delta = DeltaTable(storage.delta_location(uri), version=version, storage_options=options)
        except TableNotFoundError as error:
            raise ResultsError(f"{uri}: no results table here; `deeplab segment ARCHIVE {uri}` makes one") from error
        except (DeltaError, OSError) as error:
            raise _trouble(uri, "the table cannot be read", error) from error
        found = delta.metadata().configuration.get(FORMAT_KEY)
        if found is None:
            raise ResultsError(f"{uri}: a Delta table, but not a results table of ours; choose another place")
        if found != FORMAT:
            raise ResultsError(f"{uri}: a results table of format {found!r}; this version reads and writes {FORMAT!r}")
        have = {field.name: field.type for field in pa.schema(delta.schema().to_arrow())}
        wrong = [f"{f.name} {have.get(f.name, 'missing')}" for f in SCHEMA if not _same_type(have.get(f.name), f.type)]
        if wrong:
            raise ResultsError(f"{uri}: columns differ from this version's schema: {', '.join(wrong)}")
        return cls(uri, delta)

    @classmethod
    def ensure(cls, uri: str) -> ResultsTable:
        """The table at `uri` for a run, created empty where there is none. ResultsError for a place that holds something else."""
        uri = storage.canonical(uri)
        if not storage.is_s3(uri):
            path = storage.local_path(uri)
            if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / "_delta_log").is_dir()):
                raise ResultsError(f"{path}: holds something that is no results table; choose an empty or new folder")
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ResultsError(f"{path}: cannot be created ({error.strerror})") from error
            if not os.access(path, os.W_OK):
                raise ResultsError(f"{path}: no permission to write there")
        else:
            s3.require_conditional_put(uri)
        if not _is_table(uri):
            if storage.is_s3(uri) and not s3.is_free(uri) and not _is_table(uri):  # another run may just have made it
                raise ResultsError(f"{uri}: holds something that is no results table; choose an empty or new prefix")
            try:
                DeltaTable.create(
                    storage.delta_location(uri),
                    SCHEMA,
                    mode="ignore",
                    partition_by=["model"],
                    description="Segmentation masks, one row per image, version and model",
                    configuration={FORMAT_KEY: FORMAT},
                    storage_options=storage.delta_options(uri),
                    raise_if_key_not_exists=False,
                    # Tried again, it would put its first version after another run's.
                    commit_properties=CommitProperties(max_commit_retries=0),
                )
            except (DeltaError, OSError) as error:
                if not _is_table(uri):
                    raise _trouble(uri, "a table cannot be created", error) from error
        return cls.open(uri, patient=True)

    def refresh(self) -> None:
        """See commits made since the table was opened. Raises StorageError."""
        with _stored(self.uri):
            self.delta.update_incremental()

    @property
    def version(self) -> int:
        return self.delta.version()

    def models(self) -> dict[str, dict[str, Any]]:
        """Cards of the models that have written to the table, by label (name@digest), with how they were used."""
        configuration = self.delta.metadata().configuration
        return {key.removeprefix(MODEL_KEY): json.loads(value) for key, value in configuration.items() if key.startswith(MODEL_KEY)}

    def classes(self, model: str) -> ClassTable:
        """The class table of a model's masks. ResultsError for a model that never wrote here."""
        cards = self.models()
        if model not in cards:
            raise ResultsError(f"{self.uri}: no rows of model {model}; there are: {', '.join(cards) or 'none'}")
        entries = cards[model]["classes"]
        return ClassTable(tuple(e["name"] for e in entries), tuple(tuple(e["colour"]) for e in entries))

    def pick_model(self, reference: str | None) -> str:
        """A label from a label, a bare name, or (None) the only or latest model. ResultsError if there is no such."""
        labels = list(self.models())
        if reference is None and labels:
            latest = self.query("SELECT model FROM results GROUP BY model ORDER BY max(segmented_at) DESC LIMIT 1").fetchone()
            return latest[0] if latest else labels[-1]
        matching = [label for label in labels if reference in (label, label.split("@")[0])]
        if not matching:
            raise ResultsError(f"{self.uri}: no rows of model {reference}; there are: {', '.join(labels) or 'none'}")
        return matching[-1]

    def register(self, model: str, card: dict[str, Any]) -> None:
        """Store a model's card once, so that no mask is without its meaning. ResultsError when the log takes no entry."""
        for left in reversed(range(REGISTER_TRIES)):
            if model in self.models():
                return
            try:
                with _stored(self.uri):
                    self.delta.alter.set_table_properties({MODEL_KEY + model: json.dumps(card)}, raise_if_not_exists=False)
            except CommitFailedError as error:  # another run changed the table at this moment, perhaps by this very card
                if not left:
                    raise ResultsError(f"{self.uri}: the card of {model} was refused ({_one_line(error)}); try again") from error
            self.refresh()

    def dataset(self, model: str | None = None) -> pads.Dataset:
        """All rows as a pyarrow dataset, of one model if asked."""
        return self.delta.to_pyarrow_dataset(file_pruning_predicate=[("model", "=", model)] if model else None)

    def query(self, sql: str, parameters: Sequence[Any] = (), model: str | None = None) -> duckdb.DuckDBPyConnection:
        """Run SQL with DuckDB, in which the table is called `results`."""
        connection = duckdb.connect()
        connection.register("results", self.dataset(model))
        return connection.execute(sql, list(parameters))

    def knows(self, chunk: str) -> bool:
        """Whether the log, as far as it was read (see `refresh`), holds this chunk's application transaction."""
        with _stored(self.uri):
            return self.delta.transaction_version(chunk) is not None

    def files(self, model: str) -> dict[str, str | None]:
        """The Parquet files of a model's rows, relative to the table, each with the run that wrote it (None: several)."""
        actions = pa.table(self.delta.get_add_actions(flatten=True))
        if not actions.num_rows:
            return {}
        names = ("path", "partition.model", "min.run", "max.run")
        columns = [actions[name].to_pylist() if name in actions.column_names else [None] * actions.num_rows for name in names]
        return {unquote(path): low if low == high else None for path, of, low, high in zip(*columns, strict=True) if of == model}

    def commit(
        self,
        chunk: str,
        adds: Sequence[AddAction],
        removes: Sequence[RemoveAction] = (),
        metadata: dict[str, str] | None = None,
        *,
        writing: str | None = None,
    ) -> int:
        """Make a chunk's files part of the table in one step; a chunk that is in the log already is left as it is.

        `writing`: the model whose rows these are. Then the commit goes through only if no other commit of that model's
        rows came since the table was last refreshed: else CommitConflict, and the caller looks again.
        Returns the table's version. A reader sees all of it or nothing. Raises StorageError.
        """
        if writing is None:
            self.refresh()
        if not self.knows(chunk):
            # Two commits at once that name the same application in the log exclude each other (Delta's rule).
            order = [Transaction(f"deeplab-rows/{writing}", self.version + 1)] if writing is not None else []
            properties = CommitProperties(app_transactions=[Transaction(chunk, 1), *order], custom_metadata=metadata or {})
            try:
                with _stored(self.uri):
                    self.delta.create_write_transaction(
                        [*removes, *adds],
                        mode="append",
                        schema=SCHEMA,
                        partition_by=["model"],
                        commit_properties=properties,
                        post_commithook_properties=self._after_commit(),
                    )
            except CommitFailedError as error:
                raise CommitConflict(f"{self.uri}: another commit came first ({_one_line(error)})") from error
            self.refresh()
        return self.version

    def _after_commit(self) -> PostCommitHookProperties:
        """A checkpoint, and expired entries of the log out, when they are due: only to look takes as long as the commit."""
        due = (self.version + 2) % CHECKPOINT_EVERY == 0  # after version 99, 199, ..., where Delta's readers expect it
        return PostCommitHookProperties(create_checkpoint=due, cleanup_expired_logs=None if due else False)


def _is_table(uri: str) -> bool:
    try:
        return DeltaTable.is_deltatable(storage.delta_location(uri), storage.delta_options(uri))
    except (DeltaError, OSError) as error:
        raise _trouble(uri, "the Delta library cannot look for a table there", error) from error


def _trouble(uri: str, what: str, error: Exception) -> UserError:
    """An outage of a store as one, which passes; anything else that the Delta library met as a ResultsError."""
    if isinstance(error, UserError):
        return error
    answered = s3.as_answered(uri, error, _one_line(error))
    if storage.is_s3(uri) and isinstance(error, OSError) and answered.passing:
        return answered
    return ResultsError(f"{uri}: {what} ({_one_line(error)})")


def _same_type(found: pa.DataType | None, wanted: pa.DataType) -> bool:
    """Equal up to what Delta cannot tell apart (large and plain strings, field names inside a map)."""
    if found is None:
        return False
    if pa.types.is_map(wanted):
        return (
            pa.types.is_map(found) and _same_type(found.key_type, wanted.key_type) and _same_type(found.item_type, wanted.item_type)
        )
    for kinds in (
        (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
    ):
        if any(kind(wanted) for kind in kinds):
            return any(kind(found) for kind in kinds)
    return found == wanted


@contextmanager
def _stored(uri: str) -> Iterator[None]:
    """Trouble that the Delta library has with the store, as a StorageError in one line."""
    try:
        yield
    except OSError as error:
        raise s3.as_answered(uri, error, _one_line(error)) from error


def _one_line(error: BaseException) -> str:
    """What the Delta library says, without its colours and line breaks; its reason is at the end."""
    text = " ".join(re.sub(r"\x1b\[\d+m", "", str(error)).split())
    return text if len(text) <= 300 else f"{text[:100]} ... {text[-200:]}"
