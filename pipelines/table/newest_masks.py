"""The masks of a model as they are now: of an image with rows for several versions, the one that was segmented last."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from deeplab.errors import one_line
from pipelines.table.results_table import ResultsTable, open_part
from pipelines.table.table_errors import ResultsError

BATCH = 64  # rows per read; masks of the largest images have megabytes

Versions = Collection[tuple[str, str]]  # (uri, version)


def outdated(table: ResultsTable, model: str) -> set[tuple[str, str]]:
    """(uri, version) of the rows with a mask whose image has a later one."""
    older = table.query(
        """
        SELECT uri, version FROM results WHERE status = 'ok'
        QUALIFY row_number() OVER (PARTITION BY uri ORDER BY segmented_at DESC, version) > 1
        """,
        model=model,
    ).fetchall()
    return set(older)


def batches(table_uri: str, path: str, without: Versions, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows with a mask in one of `ResultsTable.files`, but for those `without`, BATCH at a time, with the columns that the
    file has. Raises ResultsError."""
    # Not through a dataset: its scanner reads ahead of a slow consumer, up to the whole table.
    try:
        with open_part(table_uri, path) as file:
            present = [name for name in columns if name in file.schema_arrow.names]
            for batch in file.iter_batches(BATCH, columns=[*present, *({"uri", "version", "status"} - set(present))]):
                rows = pa.table(batch)
                keep = pc.equal(rows["status"], "ok")
                if without:
                    keys = zip(rows["uri"].to_pylist(), rows["version"].to_pylist(), strict=True)
                    keep = pc.and_(keep, pa.array([key not in without for key in keys]))
                yield rows.filter(keep).select(present)
    except (OSError, pa.ArrowException) as error:
        raise ResultsError(
            f"{table_uri}/{path}: cannot be read ({one_line(error)}); `deeplab verify` says what is wrong"
        ) from error
