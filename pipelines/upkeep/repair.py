"""Files that the log names but that are missing: find their rows and correct the log.

Earlier releases wrote the files of a model whose name holds a space, %41, # or ? to another folder than they committed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from pipelines.storage import filesystems
from pipelines.table.results_table import ResultsTable


@dataclass(frozen=True)
class Missing:
    """An entry of the log whose file is missing. `place`: the file below the table that holds its rows; None if there is none."""

    model: str
    path: str
    size: int
    rows: int
    place: str | None = None

    def __str__(self) -> str:
        if self.place is None:
            return f"{self.path}: is gone with {self.rows} rows; `deeplab repair --forget` removes it from the log"
        return f"{self.path}: is missing, its {self.rows} rows lie at {self.place}; `deeplab repair` corrects the log"


@dataclass
class Repaired:
    """The result of `repair`: entries whose rows are in the table again, entries removed, and entries still missing."""

    restored: int = 0
    forgotten: int = 0
    rows: int = 0
    left: list[Missing] = field(default_factory=list)


def missing(table: ResultsTable) -> list[Missing]:
    """Every entry of the log whose file is missing, by path. Lists the table's folder; opens only files that may hold the rows."""
    actions = pa.table(table.delta.get_add_actions(flatten=True))
    if not actions.num_rows:
        return []
    names = ("partition.model", "path", "size_bytes", "num_records")
    entries = [Missing(*entry) for entry in zip(*(actions[name].to_pylist() for name in names), strict=True)]
    existing = set(filesystems.files(table.uri).names())
    absent = [Missing(e.model, unquote(e.path), e.size, e.rows) for e in entries if unquote(e.path) not in existing]
    if not absent:
        return []
    by_name = {name.rsplit("/", 1)[-1]: name for name in existing}  # the names of parts are unique
    return sorted((_located(table, entry, existing, by_name) for entry in absent), key=lambda entry: entry.path)


def _located(table: ResultsTable, entry: Missing, existing: set[str], by_name: dict[str, str]) -> Missing:
    """The entry with its `place`."""
    # Cut at # or ?, the folder's name became the name of a file, which the next part overwrote: it may hold other rows.
    cut = unquote(urlsplit(f"file:///{entry.path}").path).removeprefix("/")
    for name in (by_name.get(entry.path.rsplit("/", 1)[-1]), cut):
        if name is not None and name in existing:
            try:
                with table.open_file(name) as file:
                    if file.metadata.num_rows == entry.rows and filesystems.size(filesystems.below(table.uri, name)) == entry.size:
                        return Missing(entry.model, entry.path, entry.size, entry.rows, name)
            except (OSError, pa.ArrowException):
                continue
    return entry


def repair(table: ResultsTable, forget: bool = False) -> Repaired:
    """Put the rows of missing files back into the table, in one commit per model. `forget`: also remove entries without rows.

    No file is deleted, and a second call has nothing to do. Raises CommitConflict, StorageError.
    """
    from pipelines.table.commit import remove_action, write_part

    table.refresh()
    entries = missing(table)
    lost = [entry for entry in entries if entry.place is None]
    for model in sorted({entry.model for entry in entries}):
        adds, removes = [], []
        for entry in entries:
            if entry.model != model or (entry.place is None and not forget):
                continue
            if entry.place is not None:
                with table.open_file(entry.place) as file:
                    adds.append(write_part(table.uri, model, file.read()).add_action(model))
            removes.append(remove_action(entry.path, model))
        if removes:
            digest = hashlib.sha256("\n".join(sorted(action.path for action in removes)).encode()).hexdigest()
            notes = {"repair": f"{len(adds)} restored, {len(removes) - len(adds)} taken out"}
            table.commit(f"repair-{digest[:32]}", 1, adds, removes, notes, model=model)
    restored = [entry for entry in entries if entry.place is not None]
    return Repaired(len(restored), len(lost) if forget else 0, sum(entry.rows for entry in restored), [] if forget else lost)
