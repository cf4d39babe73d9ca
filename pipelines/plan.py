"""What is still to do: the inventory minus what the table holds, in blocks of images that one task works on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.results import ResultsTable

SCHEMA = pa.schema([("uri", pa.string()), ("version", pa.string()), ("bytes", pa.int64())])
# Images that are sorted by size together, so that those of a block are alike and batches fill up.
SORTED = 20_000
# The end of a plan is cut finer, so that no task is still at a long block when all others are done. Ray Data costs 3 ms of the
# driver's CPU a block, which even a few images outweigh.
SMALLEST = 4


@dataclass(frozen=True)
class Plan:
    """The images to do, as a Parquet file in the order of their uris.

    `version`: the table's, when the plan was made; `done`: images of the archive that have their row.
    """

    path: Path
    model: str
    version: int | None
    images: int
    done: int
    archive: int

    def blocks(self, slots: int, images: int, size: float) -> Iterator[pa.Table]:
        """The plan in blocks of SCHEMA, each of at most `images` images and about `size` encoded bytes, for `slots` tasks.

        Only SORTED rows are in memory at a time. Blocks become smaller towards the end of the plan.
        """
        left = self.images
        with pq.ParquetFile(self.path, pre_buffer=False) as source:
            for batch in source.iter_batches(batch_size=SORTED):
                rows = pa.Table.from_batches([batch]).cast(SCHEMA)
                rows = rows.sort_by([("bytes", "ascending"), ("uri", "ascending")])
                ends = pc.cumulative_sum(pc.fill_null(rows["bytes"], 0)).to_numpy()
                start = 0
                while start < rows.num_rows:
                    most = max(SMALLEST, min(images, left // (4 * slots)))
                    before = ends[start - 1] if start else 0
                    by_size = int(ends.searchsorted(before + size, side="right"))
                    stop = min(start + most, max(by_size, start + 1), rows.num_rows)
                    yield rows.slice(start, stop - start).combine_chunks()
                    left, start = left - (stop - start), stop


def make(inventory: Path, table: ResultsTable | None, model: str, path: Path, *, retry_errors: bool = False) -> Plan:
    """Anti-join `inventory` with the rows of `model` in `table` (None: an empty one) into the Parquet file `path`.

    An image is done when its uri and version have a row; with `retry_errors` only when that row is ok. An image that
    the inventory names twice is planned once.
    """
    with duckdb.connect() as connection:
        connection.execute(
            f"SET memory_limit = '700MB'; SET preserve_insertion_order = false; SET temp_directory = '{path.parent}'"
        )
        source = connection.read_parquet(str(inventory))
        connection.register("inventory", source)
        connection.execute("CREATE TABLE done (uri VARCHAR, version VARCHAR)")
        if table is not None:
            connection.register("results", table.dataset(model))
            wanted = "WHERE status = 'ok'" if retry_errors else ""
            connection.execute(f"INSERT INTO done SELECT uri, version FROM results {wanted}")
        connection.execute(
            f"""
            COPY (
                SELECT uri, max(version) AS version, max(bytes) AS bytes FROM inventory
                ANTI JOIN done USING (uri, version)
                GROUP BY uri ORDER BY uri
            ) TO '{path}' (FORMAT parquet, COMPRESSION zstd)
            """
        )
        archive = connection.execute("SELECT count(DISTINCT uri) FROM inventory").fetchone()[0]
    images = pq.read_metadata(path).num_rows
    return Plan(path, model, table.version if table is not None else None, images, archive - images, archive)
