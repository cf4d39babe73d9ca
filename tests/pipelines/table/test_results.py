"""The table: atomic commits; foreign places refused; read by everybody's readers."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from pipelines.storage import filesystems, storage_errors
from pipelines.table.commit import row_key, without_rows, write_part
from pipelines.table.replacement import Replacement
from pipelines.table.results_table import ResultsTable
from pipelines.table.schema import FILE_SCHEMA, SCHEMA
from pipelines.table.table_errors import CommitConflict, ResultsError
from tests.material import CARD

MODEL = "m@000000000000"


def rows(*entries: tuple[str, str]) -> pa.Table:
    made = [
        {
            "uri": f"file:///{name}",
            "version": "1",
            "status": status,
            "error": None if status == "ok" else "decode: broken",
            "height": 2,
            "width": 3,
            "mask": b"png",
            "class_pixels": [("cat", 4), ("background", 2)],
            "confidence": 0.5,
            "run": "run-1",
            "segmented_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        }
        for name, status in entries
    ]
    return pa.Table.from_pylist(made, schema=FILE_SCHEMA)


@pytest.fixture
def table(tmp_path: Path) -> ResultsTable:
    return ResultsTable.ensure(str(tmp_path / "results"))


def put(table: ResultsTable, chunk: str, *entries: tuple[str, str]) -> None:
    table.commit(chunk, 1, [write_part(table.uri, MODEL, rows(*entries)).add_action(MODEL)], model=MODEL)


def names(table: ResultsTable) -> list[str]:
    return sorted(uri for (uri,) in ResultsTable.open(table.uri).query("SELECT uri FROM results").fetchall())


def test_a_written_part_is_invisible_until_it_is_committed(table: ResultsTable) -> None:
    part = write_part(table.uri, MODEL, rows(("a", "ok")))
    assert names(table) == []
    table.commit("chunk-1", 1, [part.add_action(MODEL)], model=MODEL)
    assert names(table) == ["file:///a"]


def test_a_long_log_has_checkpoints_that_hold_rows_and_transactions_without_the_entries_before_them(table: ResultsTable) -> None:
    for number in range(205):
        put(table, f"chunk-{number}", (f"{number:03d}", "ok"))
    log = Path(filesystems.delta_location(table.uri)) / "_delta_log"
    assert sorted(path.name[17:20] for path in log.glob("*.checkpoint.parquet")) == ["099", "199"]
    assert json.loads((log / "_last_checkpoint").read_text())["version"] == 199
    for version in range(199):  # as Delta does with entries of more than 30 days
        (log / f"{version:020d}.json").unlink()
    late = ResultsTable.open(table.uri)
    assert [late.last_commit(f"chunk-{number}") for number in (0, 204, 205)] == [1, 1, 0]
    assert names(table) == [f"file:///{number:03d}" for number in range(205)]


def test_a_commit_of_rows_refuses_to_follow_one_that_it_has_not_seen(table: ResultsTable) -> None:
    late = ResultsTable.open(table.uri)
    table.commit("chunk-1", 1, [write_part(table.uri, MODEL, rows(("a", "ok"))).add_action(MODEL)], model=MODEL)
    add = write_part(table.uri, MODEL, rows(("a", "ok"))).add_action(MODEL)
    with pytest.raises(CommitConflict):
        late.commit("chunk-2", 1, [add], model=MODEL)
    assert names(table) == ["file:///a"]


def test_duckdb_polars_and_pandas_read_the_table_with_their_own_readers(table: ResultsTable, tmp_path: Path) -> None:
    put(table, "chunk-1", ("a", "ok"), ("b", "error"))
    files = f"{tmp_path}/results/model=*/*.parquet"
    by_files = duckdb.sql(
        f"SELECT uri, class_pixels['cat'], model FROM read_parquet('{files}', hive_partitioning=true) ORDER BY uri"
    )
    assert by_files.fetchall() == [("file:///a", 4, MODEL), ("file:///b", 4, MODEL)]
    frame = polars.read_delta(str(tmp_path / "results")).sort("uri")
    assert frame["uri"].to_list() == ["file:///a", "file:///b"]
    assert frame["mask"].to_list() == [b"png", b"png"]
    pandas_frame = DeltaTable(str(tmp_path / "results")).to_pandas()
    assert sorted(pandas_frame["status"]) == ["error", "ok"]
    assert pandas_frame["segmented_at"].iloc[0].isoformat() == "2026-01-02T03:04:05+00:00"


def test_the_log_carries_counts_and_ranges_for_readers_that_skip_files(table: ResultsTable) -> None:
    put(table, "chunk-1", ("a", "ok"), ("z", "error"))
    actions = pa.table(table.delta.get_add_actions(flatten=True)).to_pylist()
    assert [(a["num_records"], a["min.uri"], a["max.uri"]) for a in actions] == [(2, "file:///a", "file:///z")]


def test_replacing_error_rows_is_one_step_and_leaves_the_others(table: ResultsTable) -> None:
    put(table, "chunk-1", ("a", "ok"), ("b", "error"), ("c", "error"))
    opened = ResultsTable.open(table.uri)
    kept, removes = without_rows(opened, MODEL, [row_key("file:///b", "1"), row_key("file:///a", "1")], Replacement(errors=True))
    part = write_part(table.uri, MODEL, rows(("b", "ok")))
    opened.commit("chunk-2", 1, [each.add_action(MODEL) for each in (*kept, part)], removes, model=MODEL)
    assert opened.version == table.version + 1
    found = ResultsTable.open(table.uri).query("SELECT uri, status FROM results ORDER BY uri").fetchall()
    assert found == [("file:///a", "ok"), ("file:///b", "ok"), ("file:///c", "error")]


def test_the_model_card_is_kept_once_in_the_tables_metadata(table: ResultsTable) -> None:
    table.register(MODEL, CARD)
    version = table.version
    table.register(MODEL, CARD)
    opened = ResultsTable.open(table.uri)
    assert opened.models() == {MODEL: CARD}
    assert opened.version == version
    assert opened.classes(MODEL).names == ("background", "cat")
    assert opened.pick_model("m") == MODEL
    with pytest.raises(ResultsError, match="no rows of model x; there are: m@"):
        opened.pick_model("x")


def test_runs_that_start_at_once_all_find_their_card(tmp_path: Path) -> None:
    tables = [ResultsTable.ensure(str(tmp_path / "results")) for _ in range(6)]
    gate = threading.Barrier(len(tables))

    def register(index: int) -> None:
        gate.wait()
        tables[index].register(f"m{index // 2}@{'0' * 12}", CARD)

    with ThreadPoolExecutor(len(tables)) as pool:
        list(pool.map(register, range(len(tables))))
    assert sorted(ResultsTable.open(str(tmp_path / "results")).models()) == [f"m{k}@{'0' * 12}" for k in range(3)]


def test_every_column_has_the_documented_type(table: ResultsTable) -> None:
    put(table, "chunk-1", ("a", "ok"))
    stored = pq.read_schema(next(Path(table.delta.table_uri.removeprefix("file://")).rglob("*.parquet")))
    assert stored.names == [name for name in SCHEMA.names if name != "model"]
    assert stored.field("segmented_at").type == pa.timestamp("us", tz="UTC")
    assert stored.field("class_pixels").type == pa.map_(pa.string(), pa.int64())


def test_what_the_log_says_of_a_file_leaves_every_filter_right(table: ResultsTable) -> None:
    """deltalake's own data set, which docs/results-table.md shows, believes all of it."""
    made = rows(("a", "ok"), ("b" * 100, "error")).to_pylist()
    made[0] |= {"error": None, "refined": None, "read_version": "2"}
    made[1] |= {
        "error": "x" * 100,
        "height": None,
        "confidence": 0.1,
        "segmented_at": made[0]["segmented_at"] + timedelta(microseconds=1),
    }
    part = write_part(table.uri, MODEL, pa.Table.from_pylist(made, schema=FILE_SCHEMA))
    table.commit("chunk-1", 1, [part.add_action(MODEL)], model=MODEL)
    data = DeltaTable(str(filesystems.local_path(table.uri))).to_pyarrow_dataset()
    memory = data.to_table()
    connection = duckdb.connect()
    connection.register("data", data)
    connection.register("memory", memory)

    def counted(source: str, condition: str, value: object) -> object:
        return connection.execute(f"SELECT count(*) FROM {source} WHERE {condition}", [] if value is None else [value]).fetchone()

    for name in set(memory.column_names) - {"class_pixels", "mask"}:
        asked: list[tuple[str, object]] = [(f"{name} IS NULL", None), (f"{name} IS NOT NULL", None)]
        asked += [(f"{name} {sign} ?", value) for sign in "=<>" for value in memory[name].to_pylist() if value is not None]
        for condition in asked:
            assert counted("data", *condition) == counted("memory", *condition), condition


@pytest.mark.parametrize("confidence", [float("nan"), float("inf")])
def test_a_confidence_that_is_no_number_leaves_the_log_readable(table: ResultsTable, confidence: float) -> None:
    made = [{**rows(("a", "ok")).to_pylist()[0], "confidence": confidence}]
    part = write_part(table.uri, MODEL, pa.Table.from_pylist(made, schema=FILE_SCHEMA))
    assert not {"NaN", "Infinity"} & set(part.stats.replace(":", " ").replace(",", " ").replace("}", " ").split())
    table.commit("chunk-1", 1, [part.add_action(MODEL)], model=MODEL)
    assert polars.read_delta(str(filesystems.local_path(table.uri))).height == 1


def test_no_table_is_said_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="deeplab segment"):
        ResultsTable.open(str(tmp_path / "nothing"))


def test_places_that_hold_something_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    for name in ("photos", "file"):
        with pytest.raises(ResultsError, match="holds something other than a results table"):
            ResultsTable.ensure(str(tmp_path / name))
    write_deltalake(str(tmp_path / "foreign"), pa.table({"x": [1]}))
    with pytest.raises(ResultsError, match="not a results table"):
        ResultsTable.ensure(str(tmp_path / "foreign"))
    assert DeltaTable(str(tmp_path / "foreign")).to_pyarrow_table().num_rows == 1


def test_another_format_version_or_schema_is_refused(tmp_path: Path) -> None:
    options = {"partition_by": ["model"], "raise_if_key_not_exists": False}
    DeltaTable.create(str(tmp_path / "v9"), SCHEMA, configuration={"deeplab.format": "results/9"}, **options)
    with pytest.raises(ResultsError, match="format 'results/9'; this version reads and writes 'results/1'"):
        ResultsTable.open(str(tmp_path / "v9"))
    narrow = pa.schema([field for field in SCHEMA if field.name != "mask"])
    DeltaTable.create(str(tmp_path / "narrow"), narrow, configuration={"deeplab.format": "results/1"}, **options)
    with pytest.raises(ResultsError, match="mask missing"):
        ResultsTable.open(str(tmp_path / "narrow"))


def test_a_part_is_written_whole_when_the_first_try_fails(table: ResultsTable, monkeypatch: pytest.MonkeyPatch) -> None:
    written, tries = filesystems.write_whole, []

    def down_once(uri: str, data: bytes) -> int:
        tries.append(len(data))
        if len(tries) == 1:
            raise storage_errors.Outage("down")
        return written(uri, data)

    monkeypatch.setattr(filesystems, "write_whole", down_once)
    monkeypatch.setattr(filesystems.time, "sleep", lambda seconds: None)
    part = write_part(table.uri, MODEL, rows(("a", "ok")))
    assert tries == [part.size, part.size]
    table.commit("chunk-1", 1, [part.add_action(MODEL)], model=MODEL)
    assert names(table) == ["file:///a"]
