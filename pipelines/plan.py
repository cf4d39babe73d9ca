"""What is still to do: the inventory minus what the table holds, cut into chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import sql
from pipelines.results import ResultsTable

CHUNK_SIZE = 20_000


@dataclass(frozen=True)
class Chunk:
    """The unit of one Ray Data execution and one commit. `images`: uri, version, bytes, sorted by bytes.

    `id` is a digest of what is in it and of the model, so the same work has the same name in any run.
    """

    id: str
    images: pa.Table


@dataclass(frozen=True)
class Plan:
    """The images to do, as a Parquet file in the order of their uris, `chunk_size` of them a chunk."""

    path: Path
    model: str
    chunk_size: int
    images: int
    done: int
    archive: int

    def chunks(self) -> Iterator[Chunk]:
        """One chunk after the other; only one is in memory, and nothing is read ahead."""
        held = pa.schema([("uri", pa.string()), ("version", pa.string()), ("bytes", pa.int64())]).empty_table()
        with pq.ParquetFile(self.path, pre_buffer=False) as source:
            for batch in source.iter_batches(batch_size=min(self.chunk_size, 50_000)):
                held = pa.concat_tables([held, pa.Table.from_batches([batch]).cast(held.schema)])
                while held.num_rows >= self.chunk_size:
                    yield self._chunk(held.slice(0, self.chunk_size))
                    held = held.slice(self.chunk_size)
        if held.num_rows:
            yield self._chunk(held)

    def _chunk(self, images: pa.Table) -> Chunk:
        digest = hashlib.sha256(self.model.encode())
        for uri, version in zip(images["uri"].to_pylist(), images["version"].to_pylist(), strict=True):
            digest.update(f"\0{uri}\0{version}".encode(errors="surrogateescape"))
        # Like sizes next to each other: batches fill up and blocks take equal time.
        return Chunk(f"chunk-{digest.hexdigest()[:32]}", images.sort_by([("bytes", "ascending"), ("uri", "ascending")]))

    @property
    def chunk_count(self) -> int:
        return -(-self.images // self.chunk_size)


def make(
    inventory: Path, table: ResultsTable | None, model: str, path: Path, *, chunk_size: int = CHUNK_SIZE, retry_errors: bool = False
) -> Plan:
    """Anti-join `inventory` with the rows of `model` in `table` (None: an empty one) into the Parquet file `path`.

    An image is done when its uri and version have a row; with `retry_errors` only when that row is ok. An image that
    the inventory names twice is planned once. Images go to chunks in the order of their uris.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk size {chunk_size}: at least 1 is accepted")
    with sql.connect(path.parent) as connection:
        connection.execute("SET preserve_insertion_order = false")
        source = connection.read_parquet(str(inventory))
        connection.register("inventory", source)
        connection.execute("CREATE TABLE done (uri VARCHAR, version VARCHAR)")
        if table is not None:
            connection.register("results", table.dataset(model))
            wanted = "WHERE status = 'ok'" if retry_errors else ""
            connection.execute(f"INSERT INTO done SELECT uri, version FROM results {wanted}")
        missing = connection.sql(
            """
            SELECT uri, max(version) AS version, max(bytes) AS bytes FROM inventory
            ANTI JOIN done USING (uri, version)
            GROUP BY uri ORDER BY uri
            """
        )
        missing.write_parquet(str(path), compression="zstd")
        archive = connection.execute("SELECT count(DISTINCT uri) FROM inventory").fetchone()[0]
    images = pq.read_metadata(path).num_rows
    return Plan(path, model, chunk_size, images, archive - images, archive)
