"""Verify finds what is wrong, compact and vacuum change no row, drop-model touches only its own."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from deeplab import masks
from deeplab.classes import ClassTable
from pipelines.table import commit
from pipelines.table.commit import write_part
from pipelines.table.results_table import ResultsTable
from pipelines.table.schema import FILE_SCHEMA
from pipelines.upkeep import verification
from pipelines.upkeep.compaction import compact, drop_model, vacuum
from tests.material import CARD, put, row

MODEL, OTHER = "m@000000000000", "n@000000000000"


@pytest.fixture
def table(tmp_path: Path) -> ResultsTable:
    made = ResultsTable.ensure(str(tmp_path / "results"))
    for model in (MODEL, OTHER):
        made.register(model, CARD)
    return made


def names(table: ResultsTable) -> list[tuple[str, str]]:
    return ResultsTable.open(table.uri).query("SELECT model, uri FROM results ORDER BY 1, 2").fetchall()


def test_a_sound_table_has_no_problems(table: ResultsTable) -> None:
    put(table, "chunk-1", row("a"), row("b", status="error", error="decode: truncated", mask=None))
    found = verification.verify(table)
    assert (found.files, found.rows, found.count) == (1, 2, 0)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"mask": b"no png"}, "does not decode"),
        ({"height": 3}, "the mask is (2, 3)"),
        ({"mask": masks.encode_png(np.full((2, 3), 2, np.uint8), ClassTable(("a", "b", "c"), ((0, 0, 0),) * 3))}, "has class 2"),
        ({"class_pixels": [("cat", 6)]}, "class_pixels do not agree"),
        ({"mask": None}, "no mask"),
        ({"status": "error"}, "without a reason"),
    ],
)
def test_a_row_that_is_wrong_is_named(table: ResultsTable, changed: dict[str, object], problem: str) -> None:
    put(table, "chunk-1", row("a"), row("bad", **changed))
    found = verification.verify(table)
    assert found.count == 1
    assert found.problems[0].startswith("file:///bad")
    assert problem in found.problems[0]


def test_an_image_with_two_rows_is_named(table: ResultsTable) -> None:
    put(table, "chunk-1", row("a"), row("b"))
    put(table, "chunk-2", row("b"))
    put(table, "chunk-3", row("b"), model=OTHER)
    found = verification.verify(table)
    assert found.problems == [f"file:///b (version 1, model {MODEL}): 2 rows"]


def test_a_file_that_is_cut_short_or_gone_is_named(table: ResultsTable) -> None:
    cut, gone = put(table, "chunk-1", row("a")), put(table, "chunk-2", row("b"))
    root = Path(table.uri.removeprefix("file://"))
    (root / cut).write_bytes((root / cut).read_bytes()[:-20])
    (root / gone).unlink()
    found = verification.verify(table)
    assert found.count == 2
    assert {problem.split(":")[0] for problem in found.problems} == {cut, gone}


def test_compacting_leaves_every_row_and_one_file(table: ResultsTable) -> None:
    for index in range(5):
        put(table, f"chunk-{index}", row(f"{index}"))
    put(table, "chunk-n", row("0"), model=OTHER)
    before = names(table)
    assert compact(ResultsTable.open(table.uri))["removed"] == 5
    after = ResultsTable.open(table.uri)
    assert names(after) == before
    assert len(after.files(MODEL)) == 1
    assert verification.verify(after).count == 0
    assert after.last_commit("chunk-3") == 1  # what was committed stays so


def test_vacuum_lists_first_and_deletes_what_no_version_names(table: ResultsTable) -> None:
    put(table, "chunk-1", row("a"))
    orphan = write_part(table.uri, MODEL, pa.Table.from_pylist([row("b")], schema=FILE_SCHEMA)).path
    root = Path(table.uri.removeprefix("file://"))
    assert vacuum(table, 1) == []  # too young: a running writer may still commit it
    old = time.time() - 7200
    os.utime(root / orphan, (old, old))
    assert vacuum(table, 1) == [orphan]
    assert (root / orphan).exists()
    assert vacuum(table, 1, delete=True) == [orphan]
    assert not (root / orphan).exists()
    assert verification.verify(ResultsTable.open(table.uri)).count == 0


@pytest.mark.parametrize("skew", [-30 * 86400, 30 * 86400])
def test_a_driver_whose_clock_is_a_month_off_commits_like_any_other(
    table: ResultsTable, skew: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order is the log's, never a clock's: its rows follow the others', and no clean-up takes a live file for an old one."""
    put(table, "chunk-1", row("a"))
    now = time.time
    with monkeypatch.context() as wrong:
        wrong.setattr(time, "time", lambda: now() + skew)
        assert commit.time.time() != pytest.approx(now(), abs=86400)
        put(table, "chunk-2", row("b", segmented_at=datetime.fromtimestamp(now() + skew, UTC)))
    put(table, "chunk-3", row("c"))
    opened = ResultsTable.open(table.uri)
    assert names(opened) == [(MODEL, f"file:///{name}") for name in "abc"]
    assert vacuum(opened, 1, delete=True) == []
    compact(opened)
    vacuum(ResultsTable.open(table.uri), 1, delete=True)
    after = ResultsTable.open(table.uri)
    assert verification.verify(after).count == 0
    assert names(after) == [(MODEL, f"file:///{name}") for name in "abc"]


def test_dropping_a_model_leaves_the_other_and_can_be_read_back(table: ResultsTable) -> None:
    put(table, "chunk-1", row("a"), row("b"))
    put(table, "chunk-2", row("a"), model=OTHER)
    version = ResultsTable.open(table.uri).version
    opened = ResultsTable.open(table.uri)
    assert drop_model(opened, MODEL) == 2
    assert names(table) == [(OTHER, "file:///a")]
    assert len(ResultsTable.open(table.uri, version).dataset().to_table(columns=["uri"])) == 3
