"""What all exports read: a table's masks, a few at a time however slow the writer is."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.exports.source import rows
from pipelines.table.commit import write_part
from pipelines.table.results_table import ResultsTable
from pipelines.table.schema import FILE_SCHEMA
from pipelines.table.table_errors import ResultsError

FILES, ROWS, BYTES = 20, 10, 100_000


@pytest.fixture
def table(tmp_path: Path) -> ResultsTable:
    """A table of 20 MB in 20 files."""
    random = np.random.default_rng(0)
    made = ResultsTable.ensure(str(tmp_path / "results"))
    for number in range(FILES):
        entries = [
            {"uri": f"file:///{number}/{row}", "version": "1", "status": "ok", "mask": random.bytes(BYTES), "run": "r"}
            for row in range(ROWS)
        ]
        part = pa.Table.from_pylist([{**entry, "segmented_at": datetime.now(UTC)} for entry in entries], schema=FILE_SCHEMA)
        made.commit(f"chunk-{number}", 1, [write_part(made.uri, "m", part).add_action("m")], model="m")
    return ResultsTable.open(made.uri)


def test_a_slow_writer_does_not_make_the_reader_hold_the_table(table: ResultsTable) -> None:
    before, most, seen = pa.total_allocated_bytes(), 0, set()
    for row in rows(table, "m"):
        time.sleep(0.002)
        most = max(most, pa.total_allocated_bytes() - before)
        seen.add(row["uri"])
    assert len(seen) == FILES * ROWS
    assert most < 4 * ROWS * BYTES  # a file and what its reader needs, not 20


def test_a_damaged_file_is_named(table: ResultsTable) -> None:
    path = next(iter(table.files("m")))
    place = Path(table.uri.removeprefix("file://")) / path
    group = pq.ParquetFile(place).metadata.row_group(0)
    offsets = {group.column(index).path_in_schema: group.column(index).data_page_offset for index in range(group.num_columns)}
    with place.open("r+b") as file:
        file.seek(offsets["mask"])
        file.write(b"\xff" * 20)
    with pytest.raises(ResultsError, match=rf"{path}: cannot be read .*; `deeplab verify`"):
        list(rows(table, "m"))
