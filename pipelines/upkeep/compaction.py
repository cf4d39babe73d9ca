"""Make a results table smaller: compact it, vacuum it, drop a model's rows."""

from __future__ import annotations

from deltalake.exceptions import CommitFailedError, DeltaError

from deeplab.errors import one_line
from pipelines.table.results_table import ResultsTable
from pipelines.table.table_errors import ResultsError
from pipelines.upkeep.repair import missing
from pipelines.upkeep.verification import RETENTION_HOURS, TARGET_BYTES


def compact(table: ResultsTable, model: str | None = None, target_bytes: int = TARGET_BYTES) -> dict[str, int]:
    """Join small files into files of about `target_bytes`, in one commit; the rows do not change.

    Returns the numbers of files removed and added. ResultsError if another run changed the same files meanwhile.
    """
    try:
        metrics = table.delta.optimize.compact([("model", "=", model)] if model else None, target_size=target_bytes)
    except (CommitFailedError, DeltaError, OSError) as error:
        raise ResultsError(f"{table.uri}: not compacted, nothing changed ({one_line(error)})") from error
    table.refresh()
    return {"removed": int(metrics["numFilesRemoved"]), "added": int(metrics["numFilesAdded"])}


def vacuum(table: ResultsTable, hours: int = RETENTION_HOURS, *, delete: bool = False) -> list[str]:
    """Files that no version younger than `hours` names, also those of killed writers; deleted only with `delete`.

    Fewer hours than a run takes would delete parts that it has not committed yet. ResultsError if files that the log names are
    missing: files that it does not name may hold their rows.
    """
    if absent := missing(table):
        raise ResultsError(f"{table.uri}: no vacuum, as {len(absent)} files that its log names are missing: {absent[0]}")
    try:
        return list(table.delta.vacuum(hours, dry_run=not delete, enforce_retention_duration=False, full=True))
    except (DeltaError, OSError) as error:
        raise ResultsError(f"{table.uri}: vacuum failed ({one_line(error)})") from error


def drop_model(table: ResultsTable, model: str) -> int:
    """Remove all rows of a model, and of no other, in one commit; earlier versions keep them until `vacuum`.

    Returns the number of rows. The model's card stays, since those earlier versions need it.
    """
    (rows,) = table.query("SELECT count(*) FROM results", model=model).fetchone() or (0,)
    try:
        quoted = model.replace("'", "''")
        table.delta.delete(f"model = '{quoted}'")
    except (CommitFailedError, DeltaError, OSError) as error:
        raise ResultsError(f"{table.uri}: nothing dropped ({one_line(error)})") from error
    table.refresh()
    return int(rows)
