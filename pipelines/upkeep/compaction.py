"""A results table made smaller: compact it, vacuum it, drop a model's rows."""

from __future__ import annotations

from deltalake.exceptions import CommitFailedError, DeltaError

from deeplab.errors import one_line
from pipelines.table.results_table import ResultsTable
from pipelines.table.table_errors import ResultsError
from pipelines.upkeep.repair import missing
from pipelines.upkeep.verification import RETENTION_HOURS, TARGET_BYTES


def compact(table: ResultsTable, model: str | None = None, target_bytes: int = TARGET_BYTES) -> dict[str, int]:
    """Join small files into files of about `target_bytes`, in one commit; the rows stay what they are.

    Returns files before and after. ResultsError when another run changed the same files meanwhile.
    """
    try:
        done = table.delta.optimize.compact([("model", "=", model)] if model else None, target_size=target_bytes)
    except (CommitFailedError, DeltaError, OSError) as error:
        raise ResultsError(f"{table.uri}: not compacted, nothing changed ({one_line(error)})") from error
    table.refresh()
    return {"removed": int(done["numFilesRemoved"]), "added": int(done["numFilesAdded"])}


def vacuum(table: ResultsTable, hours: int = RETENTION_HOURS, *, delete: bool = False) -> list[str]:
    """Files that no version younger than `hours` names, those of killed writers too; deleted only with `delete`.

    Fewer hours than a run takes would delete parts that it has not committed yet. ResultsError where the log names files
    that are not there: what seems to be nobody's may hold their rows.
    """
    if absent := missing(table):
        raise ResultsError(f"{table.uri}: no vacuum, as {len(absent)} files that its log names are not there: {absent[0]}")
    try:
        return table.delta.vacuum(hours, dry_run=not delete, enforce_retention_duration=False, full=True)
    except (DeltaError, OSError) as error:
        raise ResultsError(f"{table.uri}: vacuum failed ({one_line(error)})") from error


def drop_model(table: ResultsTable, model: str) -> int:
    """Take all rows of a model out, in one commit that touches no other; earlier versions keep them until `vacuum`.

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
