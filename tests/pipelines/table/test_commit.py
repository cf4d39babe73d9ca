"""Commits of one run among others: whatever comes between, each image has one row, and what was said to be committed is."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake.exceptions import DeltaError
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipelines.storage.storage_errors import StorageError
from pipelines.table.commit import Committer, PartFile, write_part
from pipelines.table.replacement import MaskSettings, Replacement
from pipelines.table.results_table import ResultsTable
from pipelines.table.schema import FILE_SCHEMA
from pipelines.table.table_errors import CommitConflict
from pipelines.upkeep import compaction
from pipelines.upkeep.compaction import vacuum
from tests.examples import examples

MODEL = "m@000000000000"
IMAGES = [f"file:///{letter}" for letter in "abcd"]  # few, so that writers meet


def part(table: ResultsTable, run: str, rows: dict[str, str], scored: str = "new") -> PartFile:
    """A part file of images with their status; `scored`: their settings."""
    base = {"version": "1", "error": "decode: empty", "scored": scored, "run": run, "segmented_at": datetime.now(UTC)}
    made = [{**base, "uri": uri, "status": status} for uri, status in rows.items()]
    return write_part(table.uri, MODEL, pa.Table.from_pylist(made, schema=FILE_SCHEMA), {"score": 1.0}, {"here": len(rows)})


def stored(uri: str) -> dict[str, tuple[str, str]]:
    """(status, run) by image; fails where an image has two rows."""
    rows = ResultsTable.open(uri).query("SELECT uri, status, run FROM results").fetchall()
    assert len({row[0] for row in rows}) == len(rows), sorted(rows)
    return {image: (status, run) for image, status, run in rows}


@pytest.fixture
def table(tmp_path: Path) -> ResultsTable:
    return ResultsTable.ensure(str(tmp_path / "results"))


def test_nothing_is_seen_before_the_commit_and_all_of_it_after(table: ResultsTable) -> None:
    committer = Committer(table.uri, MODEL, "run", table.version)
    committer.add([part(table, "run", {"file:///a": "ok", "file:///b": "error"}), part(table, "run", {"file:///c": "ok"})])
    assert stored(table.uri) == {} and committer.uncommitted == 3
    done = committer.commit()
    assert set(stored(table.uri)) == {"file:///a", "file:///b", "file:///c"}
    assert (done.images, done.errors, done.left_out, done.commits, done.version) == (3, 1, 0, 1, table.version + 1)
    assert (done.seconds, done.nodes) == ({"score": 2.0}, {"here": 3})
    assert committer.commit() is done and committer.uncommitted == 0


def test_a_commit_whose_answer_was_lost_is_found_and_not_repeated(table: ResultsTable, monkeypatch: pytest.MonkeyPatch) -> None:
    committer = Committer(table.uri, MODEL, "run", table.version)
    real = committer.table.commit

    def lost(*arguments: Any, **more: Any) -> None:
        real(*arguments, **more)
        raise StorageError("the answer was lost")

    monkeypatch.setattr(committer.table, "commit", lost)
    committer.add([part(table, "run", {"file:///a": "ok"})])
    with pytest.raises(StorageError):
        committer.commit()
    assert committer.uncommitted == 1
    monkeypatch.setattr(committer.table, "commit", real)
    committer.add([part(table, "run", {"file:///b": "ok"})])
    assert (committer.commit().images, committer.done.commits) == (2, 2)
    assert set(stored(table.uri)) == {"file:///a", "file:///b"}


def test_a_commit_that_arrives_late_and_the_one_that_took_its_place_bring_the_rows_once(table: ResultsTable) -> None:
    committer = Committer(table.uri, MODEL, "run", table.version)
    rows = part(table, "run", {"file:///a": "ok"})
    late = ResultsTable.open(table.uri)
    committer.add([rows])
    committer.commit()
    with pytest.raises(CommitConflict):
        late.commit(committer.writer, 1, [rows.add_action(MODEL)], model=MODEL)
    assert set(stored(table.uri)) == {"file:///a"}


def test_rows_that_another_run_brought_since_planning_are_left_out_and_counted(table: ResultsTable) -> None:
    first, second = (Committer(table.uri, MODEL, run, table.version) for run in ("one", "two"))
    first.add([part(table, "one", {"file:///a": "ok", "file:///b": "error"})])
    first.commit()
    second.add([part(table, "two", {"file:///b": "ok", "file:///c": "ok"}), part(table, "two", {"file:///a": "ok"})])
    done = second.commit()
    assert (done.images, done.left_out, done.nodes) == (1, 2, {"here": 3})
    assert stored(table.uri) == {"file:///a": ("ok", "one"), "file:///b": ("error", "one"), "file:///c": ("ok", "two")}


def test_what_others_brought_before_one_commit_is_left_out_of_all_later_ones(table: ResultsTable) -> None:
    first, second = (Committer(table.uri, MODEL, run, table.version) for run in ("one", "two"))
    first.add([part(table, "one", {f"file:///{image}": "ok" for image in "abcd"})])
    first.commit()
    for image in "abcde":
        second.add([part(table, "two", {f"file:///{image}": "ok"})])
        second.commit()
    assert (second.done.images, second.done.left_out, second.done.commits) == (1, 4, 5)
    assert len(stored(table.uri)) == 5


def test_writers_that_commit_at_once_leave_one_row_per_image(table: ResultsTable) -> None:
    """Six writers, each with four images of which it shares three with its neighbours, released at the same moment."""
    writers = 6
    start = threading.Barrier(writers)

    def write(number: int) -> int:
        committer = Committer(table.uri, MODEL, f"run-{number}", table.version)
        committer.add([part(table, f"run-{number}", {f"file:///{index:02d}": "ok" for index in range(number, number + 4)})])
        start.wait()
        return committer.commit().images

    with ThreadPoolExecutor(writers) as pool:
        assert sum(pool.map(write, range(writers))) == writers + 3
    assert sorted(stored(table.uri)) == [f"file:///{index:02d}" for index in range(writers + 3)]


def test_a_retry_replaces_error_rows_in_the_same_commit_also_when_they_were_compacted_meanwhile(table: ResultsTable) -> None:
    first = Committer(table.uri, MODEL, "one", table.version)
    for image in "abc":
        first.add([part(table, "one", {f"file:///{image}": "error"})])
        first.commit()
    retry = Committer(table.uri, MODEL, "two", first.done.version or 0, Replacement(errors=True))
    compaction.compact(ResultsTable.open(table.uri))
    retry.add([part(table, "two", {"file:///a": "ok", "file:///b": "error"})])
    assert (retry.commit().images, retry.done.left_out) == (2, 0)
    assert stored(table.uri) == {"file:///a": ("ok", "two"), "file:///b": ("error", "two"), "file:///c": ("error", "one")}


def test_redo_replaces_masks_of_other_settings_in_the_same_commit_and_no_others(table: ResultsTable) -> None:
    first = Committer(table.uri, MODEL, "one", table.version)
    first.add([part(table, "one", {"file:///a": "ok", "file:///b": "error", "file:///c": "ok"}, "old")])
    first.add([part(table, "one", {"file:///d": "ok"}, "new")])
    first.commit()
    redo = Replacement("two", others_than=MaskSettings("new"))
    planned = first.done.version or 0
    second = Committer(table.uri, MODEL, "two", planned, redo)
    other = Committer(table.uri, MODEL, "three", planned, replace(redo, run="three"))  # with the same plan, at the same time
    for committer in (second, other):
        committer.add([part(table, committer.run, {"file:///a": "ok", "file:///c": "ok"}, "new")])
    compaction.compact(ResultsTable.open(table.uri))
    before = ResultsTable.open(table.uri).version
    assert (second.commit().images, second.done.version) == (2, before + 1)
    assert (other.commit().images, other.done.left_out) == (0, 2)
    rows = {"file:///a": ("ok", "two"), "file:///b": ("error", "one"), "file:///c": ("ok", "two"), "file:///d": ("ok", "one")}
    assert stored(table.uri) == rows
    third = Committer(table.uri, MODEL, "four", table.version)  # planned first, and only fills gaps
    third.add([part(table, "four", {"file:///a": "ok"}, "old")])
    assert (third.commit().images, stored(table.uri)) == (0, rows)


def test_a_part_that_vacuum_took_away_is_not_named(table: ResultsTable) -> None:
    committer = Committer(table.uri, MODEL, "run", table.version)
    committer.add([part(table, "run", {"file:///a": "ok"})])
    vacuum(ResultsTable.open(table.uri), hours=0, delete=True)
    committer.add([part(table, "run", {"file:///b": "ok"})])
    assert committer.commit().images == 1
    assert set(stored(table.uri)) == {"file:///b"}


class Interleavings(RuleBasedStateMachine):
    """Writers that plan, deliver, commit, lose answers, are overtaken and die in any order, beside compaction and vacuum.

    The model of the table: `owed` are rows that a writer was told are committed, `done` images that have their ok row.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.uri = ResultsTable.ensure(str(self.folder / "results")).uri
        self.writers: list[tuple[Committer, dict[str, str], set[str]]] = []  # with its plan's images left, and those it delivered
        self.late: list[Callable[[], None]] = []
        self.ok: set[str] = set()
        self.rowed: set[str] = set()

    def teardown(self) -> None:
        for committer, _, delivered in self.writers:
            committer.commit()
            self.rowed |= delivered
        assert self.rowed <= set(stored(self.uri))
        shutil.rmtree(self.folder)

    @initialize()
    def begin(self) -> None:
        for _ in range(3):  # with the same work
            self.plan(replacing=False)

    @precondition(lambda self: len(self.writers) < 4)
    @rule(replacing=st.booleans())
    def plan(self, replacing: bool) -> None:
        table = ResultsTable.open(self.uri)
        rows = stored(self.uri)
        left = {image: "" for image in IMAGES if image not in rows or (replacing and rows[image][0] == "error")}
        run = f"run-{len(self.writers)}-{table.version}"
        self.writers.append((Committer(self.uri, MODEL, run, table.version, Replacement(run, errors=replacing)), left, set()))

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        committer, left, delivered = data.draw(st.sampled_from(self.writers))
        if left:
            images = data.draw(st.lists(st.sampled_from(sorted(left)), min_size=1, max_size=2, unique=True))
            rows = {image: data.draw(st.sampled_from(["ok", "error"])) for image in images}
            committer.add([part(committer.table, committer.run, rows)])
            delivered |= set(images)
            for image in images:
                del left[image]

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def deliver_one_and_commit(self, data: st.DataObject) -> None:
        """What writers mostly do; one image at a time, so that what others brought lies between many commits."""
        committer, left, delivered = data.draw(st.sampled_from(self.writers))
        if left:
            image = data.draw(st.sampled_from(sorted(left)))
            committer.add([part(committer.table, committer.run, {image: "ok"})])
            delivered.add(image)
            del left[image]
            committer.commit()
            self.rowed |= delivered

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), fault=st.sampled_from(["none", "lost", "refused", "late", "overtaken", "compacted"]))
    def commit(self, data: st.DataObject, fault: str) -> None:
        committer, _, delivered = data.draw(st.sampled_from(self.writers))
        real, table = committer.table.commit, committer.table
        others = [other for other in self.writers if other[0] is not committer]

        def faulty(*arguments: Any, **more: Any) -> None:
            table.commit = real  # type: ignore[method-assign]  # the fault happens once
            if fault == "late":
                stale = ResultsTable.open(self.uri, table.version)
                self.late.append(lambda: stale.commit(*arguments, **more))
            if fault == "overtaken" and others:
                data.draw(st.sampled_from(others))[0].commit()
            if fault == "compacted":
                compaction.compact(ResultsTable.open(self.uri))
            if fault in ("none", "lost", "overtaken", "compacted"):
                real(*arguments, **more)
            if fault in ("lost", "refused", "late"):
                raise StorageError(fault)

        table.commit = faulty  # type: ignore[method-assign]
        try:
            committer.commit()
            self.rowed |= delivered
        except StorageError:
            pass
        finally:
            table.commit = real  # type: ignore[method-assign]

    @precondition(lambda self: self.late)
    @rule()
    def arrive_late(self) -> None:
        with suppress(CommitConflict, DeltaError):
            self.late.pop(0)()

    @precondition(lambda self: len(self.writers) > 1)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        self.writers.remove(data.draw(st.sampled_from(self.writers)))

    @rule()
    def compact(self) -> None:
        compaction.compact(ResultsTable.open(self.uri))

    @invariant()
    def one_row_each(self) -> None:
        rows = stored(self.uri)
        assert self.rowed <= set(rows)
        now = {image for image, (status, _) in rows.items() if status == "ok"}
        assert self.ok <= now  # an ok row never gives way
        self.ok = now


Interleavings.TestCase.settings = settings(max_examples=examples(20), stateful_step_count=16)
TestInterleavings = Interleavings.TestCase
