"""What is still to do: the inventory minus the images in the table, in blocks that one task works on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import sql
from pipelines.table.replacement import NOTHING, MaskSettings, Replacement, as_text, made_otherwise
from pipelines.table.results_table import ResultsTable
from pipelines.table.schema import done_versions

SCHEMA = pa.schema([("uri", pa.string()), ("version", pa.string()), ("bytes", pa.int64())])
# Images that are sorted by size together, so that a block holds images of similar size and batches fill up.
SORTED = 20_000
SMALLEST = 4  # images of a block: their work outweighs the 3 to 8 ms of the driver's CPU that Ray Data takes per block
LEAST = 6  # blocks of a task
OTHERWISE = """
    EXISTS (FROM other_settings AS o WHERE o.scored IS NOT DISTINCT FROM results.scored
            AND o.refined IS NOT DISTINCT FROM results.refined)
"""


@dataclass(frozen=True)
class Plan:
    """The images to do, as a Parquet file sorted by uri.

    `version`: the table's, when the plan was made; `done`: images of the archive that already have a row; `archive`: all of its
    images. `made_otherwise`: of the images that are done, how many have a mask made with other settings than the run's,
    which are `other_settings`. `replaced`: images to do whose row will give way.
    """

    path: Path
    model: str
    version: int
    images: int
    done: int
    archive: int
    made_otherwise: int = 0
    other_settings: tuple[str, ...] = ()
    replaced: int = 0

    def blocks(self, slots: int, images: int, size: float) -> Iterator[pa.Table]:
        """The plan in blocks of SCHEMA, each of at most `images` images and about `size` encoded bytes, for `slots` tasks.

        Only SORTED rows are in memory at a time. Each task gets LEAST blocks or more (unless SMALLEST forbids it), so that a short
        run has commits and work for nodes that join. The first blocks of the tasks differ in size, so that tasks finish one after
        another and rows arrive steadily. Towards the end a block is a task's share of the rest (guided self-scheduling:
        Polychronopoulos and Kuck, 1987), so that all tasks finish at about the same time.
        """
        left, number, usual = self.images, 0, min(images, self.images // (LEAST * slots))
        with pq.ParquetFile(self.path, pre_buffer=False) as source:
            for batch in source.iter_batches(batch_size=SORTED):
                rows = pa.Table.from_batches([batch]).cast(SCHEMA)
                rows = rows.sort_by([("bytes", "ascending"), ("uri", "ascending")])
                ends = pc.cumulative_sum(pc.fill_null(rows["bytes"], 0)).to_numpy()
                start = 0
                while start < rows.num_rows:
                    images_now = usual * (slots - number) // slots if number < slots else usual
                    most, number = max(SMALLEST, min(images_now, left // slots)), number + 1
                    before = ends[start - 1] if start else 0
                    by_size = int(ends.searchsorted(before + size, side="right"))
                    stop = min(start + most, max(by_size, start + 1), rows.num_rows)
                    yield rows.slice(start, stop - start).combine_chunks()
                    left, start = left - (stop - start), stop


def packed(block: pa.Table) -> pa.Table:
    """A block, compressed, as a table of one row, which Ray Data neither splits nor joins with others."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, block.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(block)
    return pa.table({"block": pa.array([sink.getvalue().to_pybytes()], pa.binary())})


def unpacked(row: pa.Table) -> pa.Table:
    """The inverse of `packed`."""
    return pa.ipc.open_stream(row["block"][0].as_buffer()).read_all()


def make(
    inventory: Path,
    table: ResultsTable | None,
    model: str,
    path: Path,
    replacing: Replacement = NOTHING,
    settings: MaskSettings | None = None,
) -> Plan:
    """Anti-join `inventory` with the rows of `model` in `table` (None: an empty table) into the Parquet file `path`.

    An image is done if a row of its uri has its listed version as `version`, or as `read_version` (the image changed between
    listing and reading, and the new listing shows it), unless it is one that `replacing` replaces. If the inventory names an
    image more than once (a tar may hold a name twice), the last entry counts, as when a tar is unpacked. `settings`: those of the
    run, to count masks that were made with others.
    """
    with sql.connect(path.parent) as connection:
        connection.execute("SET preserve_insertion_order = false")
        source = connection.read_parquet(str(inventory), file_row_number=True)
        connection.register("inventory", source)
        connection.execute("CREATE TABLE done (uri VARCHAR, version VARCHAR, otherwise BOOLEAN)")
        connection.execute("CREATE TABLE given_way (uri VARCHAR, version VARCHAR)")
        other_settings = list[str]()
        if table is not None:
            connection.register("results", table.dataset(model))
            with table.reading():
                texts = connection.sql("SELECT DISTINCT scored, refined FROM results WHERE status = 'ok'").to_arrow_table()
                others = texts.filter(pa.array(made_otherwise(texts, settings) if settings else [False] * len(texts), pa.bool_()))
                other_settings = [as_text(**row) for row in others.to_pylist()]
                connection.register("others", others)
                connection.execute("CREATE TABLE other_settings AS FROM others")
                otherwise = f"(status = 'ok' AND {OTHERWISE})" if len(others) else "FALSE"
                replaced = [otherwise] * (replacing.others_than is not None) + ["status <> 'ok'"] * replacing.errors
                kept = f"(NOT ({' OR '.join(replaced)}) OR run = '{replacing.run}')" if replaced else "TRUE"
                if replaced:
                    connection.execute(f"INSERT INTO given_way {done_versions(where=f'NOT {kept}')}")
                for is_otherwise, where in (("FALSE", f"NOT {otherwise}"), ("TRUE", otherwise))[: 2 if len(others) else 1]:
                    rows = done_versions(where=f"{kept} AND {where}")
                    connection.execute(f"INSERT INTO done SELECT uri, version, {is_otherwise} FROM ({rows})")
        connection.execute(
            """
            CREATE VIEW latest AS
            SELECT uri, arg_max(version, file_row_number) AS version, arg_max(bytes, file_row_number) AS bytes
            FROM inventory GROUP BY uri
            """
        )
        missing = connection.sql("FROM latest ANTI JOIN done USING (uri, version) ORDER BY uri")
        missing.write_parquet(str(path), compression="zstd")
        others = "SELECT count(*) FROM latest SEMI JOIN (FROM done WHERE otherwise) USING (uri, version)"
        other_masks = connection.execute(others).fetchone()[0]
        given_way = connection.execute("SELECT count(*) FROM latest SEMI JOIN given_way USING (uri, version)").fetchone()[0]
        archive = connection.execute("SELECT count(DISTINCT uri) FROM inventory").fetchone()[0]
    images = pq.read_metadata(path).num_rows
    return Plan(
        path,
        model,
        table.version if table is not None else 0,
        images,
        archive - images,
        archive,
        other_masks,
        tuple(other_settings),
        given_way,
    )
