"""The table: atomic commits, one per chunk; foreign places refused; read by everybody's readers."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from pipelines import s3, storage
from pipelines.results import FILE_SCHEMA, SCHEMA, CommitConflict, ResultsError, ResultsTable
from pipelines.sink import ResultsSink, row_key, without_errors, write_part

MODEL = "m@000000000000"
CARD = {"name": "m", "classes": [{"name": "background", "colour": [0, 0, 0]}, {"name": "cat", "colour": [64, 0, 0]}]}


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
    table.commit(chunk, [write_part(table.uri, MODEL, rows(*entries)).add_action(MODEL)])


def names(table: ResultsTable) -> list[str]:
    return sorted(uri for (uri,) in ResultsTable.open(table.uri).query("SELECT uri FROM results").fetchall())


def test_a_written_part_is_invisible_until_it_is_committed(table: ResultsTable) -> None:
    part = write_part(table.uri, MODEL, rows(("a", "ok")))
    assert names(table) == []
    table.commit("chunk-1", [part.add_action(MODEL)])
    assert names(table) == ["file:///a"]


def test_the_same_chunk_is_committed_once_however_often_it_is_tried(table: ResultsTable) -> None:
    put(table, "chunk-1", ("a", "ok"))
    version = ResultsTable.open(table.uri).version
    put(ResultsTable.open(table.uri), "chunk-1", ("a", "ok"))
    assert names(table) == ["file:///a"]
    assert ResultsTable.open(table.uri).version == version


def test_a_row_that_another_run_brought_since_planning_is_left_out(table: ResultsTable) -> None:
    planned = table.version
    put(table, "chunk-theirs", ("a", "ok"), ("b", "ok"))
    sink = ResultsSink(table.uri, MODEL, "run-2", "chunk-ours", 2, planned)
    sink._commit([write_part(table.uri, MODEL, rows(("b", "ok"), ("c", "error")))])
    assert names(table) == ["file:///a", "file:///b", "file:///c"]
    assert (sink.rows, sink.errors) == (1, 1)  # what a summary counts


def test_a_chunk_that_another_run_brought_counts_as_theirs_and_one_whose_answer_was_lost_as_ours(
    table: ResultsTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = table.version
    put(table, "chunk-1", ("a", "ok"))
    theirs = ResultsSink(table.uri, MODEL, "run-2", "chunk-1", 1, planned)
    theirs._commit([write_part(table.uri, MODEL, rows(("a", "ok")))])
    assert theirs.rows == 0
    commit, answers = ResultsTable.commit, []

    def lost(self: ResultsTable, *given: Any, **named: Any) -> int:
        answers.append(commit(self, *given, **named))
        raise CommitConflict("the answer was lost, and the second try met its own commit")

    monkeypatch.setattr(ResultsTable, "commit", lost)
    ours = ResultsSink(table.uri, MODEL, "run-2", "chunk-2", 1, planned)
    ours._commit([write_part(table.uri, MODEL, rows(("b", "error")))])
    assert len(answers) == 1 and (ours.rows, ours.errors) == (1, 1)
    assert names(table) == ["file:///a", "file:///b"]


def test_writers_that_commit_at_once_leave_one_row_per_image(table: ResultsTable) -> None:
    """Six writers, each with four images of which it shares three with its neighbours, released at the same moment."""
    planned, writers = table.version, 6
    start = threading.Barrier(writers)

    def write(number: int) -> None:
        sink = ResultsSink(table.uri, MODEL, f"writer-{number}", f"chunk-{number}", 4, planned)
        part = write_part(table.uri, MODEL, rows(*((f"{index:02d}", "ok") for index in range(number, number + 4))))
        start.wait()
        sink._commit([part])

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(write, range(writers)))
    assert names(table) == [f"file:///{index:02d}" for index in range(writers + 3)]


def test_a_long_log_has_checkpoints_that_hold_rows_and_transactions_without_the_entries_before_them(table: ResultsTable) -> None:
    for number in range(205):
        put(table, f"chunk-{number}", (f"{number:03d}", "ok"))
    log = Path(storage.delta_location(table.uri)) / "_delta_log"
    assert sorted(path.name[17:20] for path in log.glob("*.checkpoint.parquet")) == ["099", "199"]
    assert json.loads((log / "_last_checkpoint").read_text())["version"] == 199
    for version in range(199):  # as Delta does with entries of more than 30 days
        (log / f"{version:020d}.json").unlink()
    late = ResultsTable.open(table.uri)
    assert late.knows("chunk-0") and late.knows("chunk-204") and not late.knows("chunk-205")
    assert names(table) == [f"file:///{number:03d}" for number in range(205)]


def test_a_commit_of_rows_refuses_to_follow_one_that_it_has_not_seen(table: ResultsTable) -> None:
    late = ResultsTable.open(table.uri)
    table.commit("chunk-1", [write_part(table.uri, MODEL, rows(("a", "ok"))).add_action(MODEL)], writing=MODEL)
    add = write_part(table.uri, MODEL, rows(("a", "ok"))).add_action(MODEL)
    with pytest.raises(CommitConflict):
        late.commit("chunk-2", [add], writing=MODEL)
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
    adds, removes = without_errors(opened, MODEL, [row_key("file:///b", "1"), row_key("file:///a", "1")])
    part = write_part(table.uri, MODEL, rows(("b", "ok")))
    version = opened.commit("chunk-2", [*adds, part.add_action(MODEL)], removes)
    assert version == table.version + 1
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


def test_no_table_is_said_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="deeplab segment"):
        ResultsTable.open(str(tmp_path / "nothing"))


def test_places_that_hold_something_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    for name in ("photos", "file"):
        with pytest.raises(ResultsError, match="holds something that is no results table"):
            ResultsTable.ensure(str(tmp_path / name))
    write_deltalake(str(tmp_path / "foreign"), pa.table({"x": [1]}))
    with pytest.raises(ResultsError, match="not a results table of ours"):
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
    written, tries = storage.write_whole, []

    def down_once(uri: str, data: bytes) -> int:
        tries.append(len(data))
        if len(tries) == 1:
            raise s3.Outage("down")
        return written(uri, data)

    monkeypatch.setattr(storage, "write_whole", down_once)
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    part = write_part(table.uri, MODEL, rows(("a", "ok")))
    assert tries == [part.size, part.size]
    table.commit("chunk-1", [part.add_action(MODEL)])
    assert names(table) == ["file:///a"]
