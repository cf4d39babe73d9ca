"""What is planned: exactly the images without their row, in blocks that become smaller towards the end."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.archive.inventory import SCHEMA
from pipelines.segment import plan
from pipelines.table.commit import write_part
from pipelines.table.replacement import MaskSettings, Replacement
from pipelines.table.results_table import ResultsTable
from pipelines.table.schema import FILE_SCHEMA
from tests.examples import examples

MODEL = "m@000000000000"


def write_inventory(path: Path, rows: list[tuple[str, str]]) -> Path:
    columns = [[uri for uri, _ in rows], [len(uri) for uri, _ in rows], [version for _, version in rows]]
    pq.write_table(pa.table(columns, schema=SCHEMA), path)
    return path


def table_with(path: Path, rows: list[tuple[str, str, str]], model: str = MODEL) -> ResultsTable:
    table = ResultsTable.ensure(str(path))
    made = [
        {"uri": uri, "version": version, "status": status, "run": "r", "segmented_at": datetime.now(UTC)}
        for uri, version, status in rows
    ]
    if made:
        part = write_part(table.uri, model, pa.Table.from_pylist(made, schema=FILE_SCHEMA))
        table.commit(f"chunk-{len(rows)}-{model}", 1, [part.add_action(model)], model=model)
    return table


def planned(todo: plan.Plan) -> list[tuple[str, str]]:
    return [(row["uri"], row["version"]) for block in todo.blocks(2, 64, 1e9) for row in block.to_pylist()]


def test_an_empty_table_leaves_everything_to_do(tmp_path: Path) -> None:
    rows = [(f"file:///{i:04}", "v") for i in range(10)]
    todo = plan.make(write_inventory(tmp_path / "i.parquet", rows), None, MODEL, tmp_path / "p.parquet")
    assert sorted(planned(todo)) == rows
    assert (todo.images, todo.done, todo.archive) == (10, 0, 10)


keys = st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["1", "2"]))


@settings(max_examples=examples(15), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    archive=st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from(["1", "2"]), min_size=1),
    done=st.dictionaries(keys, st.sampled_from(["ok", "error"])),
    retry=st.booleans(),
)
def test_the_plan_is_the_set_difference(tmp_path_factory: pytest.TempPathFactory, archive: dict, done: dict, retry: bool) -> None:
    root = tmp_path_factory.mktemp("plan")
    table = table_with(root / "t", [(uri, version, status) for (uri, version), status in done.items()])
    todo = plan.make(
        write_inventory(root / "i.parquet", list(archive.items())), table, MODEL, root / "p.parquet", Replacement(errors=retry)
    )
    counted = {key for key, status in done.items() if status == "ok" or not retry}
    assert sorted(planned(todo)) == sorted(set(archive.items()) - counted)


def made_with(path: Path, rows: dict[str, tuple[str | None, str | None]]) -> ResultsTable:
    """A table of ok rows with their (scored, refined)."""
    table = ResultsTable.ensure(str(path))
    base = {"version": "1", "status": "ok", "run": "old", "segmented_at": datetime.now(UTC)}
    made = [{**base, "uri": uri, "scored": scored, "refined": refined} for uri, (scored, refined) in rows.items()]
    part = write_part(table.uri, MODEL, pa.Table.from_pylist(made, schema=FILE_SCHEMA))
    table.commit("old", 1, [part.add_action(MODEL)], model=MODEL)
    return table


@pytest.mark.parametrize("redo", [False, True])
def test_masks_made_with_other_settings_are_counted_or_with_redo_made_again(tmp_path: Path, redo: bool) -> None:
    same = {
        "a": ("standard stride8 scales1 tile1025/128 bfloat16", "fast i10"),
        "b": ("standard stride8 scales1 tile1025/128 float32", "fast i10"),  # auto takes what the device is best at
        "c": ("best stride8 scales1 tile1025/128 float32", "exact i10 and fast i10"),  # the word alone is no setting
    }
    other = {
        "d": ("draft stride16 scales1 tile1025/128 bfloat16", "fast i10"),
        "e": ("standard stride8 scales0.5/1 max tile1025/128 bfloat16", "fast i10"),
        "f": ("standard stride8 scales1 tile1025/128 bfloat16", None),
        "g": ("standard stride8 scales1 tile1025/128 bfloat16", "fast i5"),
        "h": (None, "fast i10"),  # an earlier release did not tell
    }
    table = made_with(tmp_path / "t", {**same, **other})
    wanted = MaskSettings("standard stride8 scales1 tile1025/128 auto", ("fast i10", "exact i10"))
    inventory = write_inventory(tmp_path / "i.parquet", [(uri, "1") for uri in [*same, *other, "new"]])
    replacing = Replacement("now", others_than=wanted if redo else None)
    todo = plan.make(inventory, table, MODEL, tmp_path / "p.parquet", replacing, wanted)
    assert {uri for uri, _ in planned(todo)} == ({"new", *other} if redo else {"new"})
    assert todo.made_otherwise == (0 if redo else len(other))
    exactly = MaskSettings("standard stride8 scales1 tile1025/128 float32", ("fast i10", "exact i10"), precision="float32")
    assert plan.make(inventory, table, MODEL, tmp_path / "p.parquet", settings=exactly).made_otherwise == len(other) + 1


def test_a_run_that_goes_on_does_not_make_its_own_masks_again(tmp_path: Path) -> None:
    """A mask of the run whose CRF fell back to another engine looks like one of other settings."""
    table = made_with(tmp_path / "t", {"a": ("x", None), "b": ("x", None)})
    inventory = write_inventory(tmp_path / "i.parquet", [("a", "1"), ("b", "1")])
    replacing = Replacement("old", others_than=MaskSettings("y"))
    assert plan.make(inventory, table, MODEL, tmp_path / "p.parquet", replacing, MaskSettings("y")).images == 0


def test_rows_of_another_model_do_not_count(tmp_path: Path) -> None:
    table = table_with(tmp_path / "t", [("file:///a", "1", "ok")], model="other@111111111111")
    todo = plan.make(write_inventory(tmp_path / "i.parquet", [("file:///a", "1")]), table, MODEL, tmp_path / "p.parquet")
    assert todo.images == 1


def test_an_image_named_twice_is_planned_once(tmp_path: Path) -> None:
    inventory = write_inventory(tmp_path / "i.parquet", [("file:///a", "1")] * 3 + [("file:///b", "1")])
    todo = plan.make(inventory, None, MODEL, tmp_path / "p.parquet")
    assert (sorted(planned(todo)), todo.archive) == ([("file:///a", "1"), ("file:///b", "1")], 2)


def test_of_an_image_named_with_two_versions_the_last_counts_once_and_for_all(tmp_path: Path) -> None:
    """As where a tar holds a name twice, and is unpacked."""
    inventory = write_inventory(tmp_path / "i.parquet", [("file:///a", "t@9+1"), ("file:///b", "1"), ("file:///a", "t@10+1")])
    todo = plan.make(inventory, None, MODEL, tmp_path / "p.parquet")
    assert sorted(planned(todo)) == [("file:///a", "t@10+1"), ("file:///b", "1")]
    table = table_with(tmp_path / "t", [("file:///a", "t@10+1", "ok"), ("file:///b", "1", "ok")])
    assert plan.make(inventory, table, MODEL, tmp_path / "p.parquet").images == 0


def test_blocks_are_of_the_size_asked_alike_and_smaller_at_the_end(tmp_path: Path) -> None:
    rows = [(f"file:///{i:05}", "v") for i in range(5003)]
    inventory = write_inventory(tmp_path / "i.parquet", rows)
    todo = plan.make(inventory, None, MODEL, tmp_path / "p.parquet")
    sizes = [block.num_rows for block in todo.blocks(4, 64, 1e9)]
    assert sum(sizes) == 5003 and sorted(planned(todo)) == rows
    assert sizes[:60] == [64, 48, 32, 16] + [64] * 56  # so that four tasks do not end their first blocks at once
    assert sizes[4:] == sorted(sizes[4:], reverse=True) and sizes[-2] <= plan.SMALLEST
    by_bytes = list(todo.blocks(4, 64, 10 * len("file:///00000")))
    assert {block.num_rows for block in by_bytes[:-1]} <= set(range(plan.SMALLEST, 11))


def test_a_large_image_is_a_block_of_its_own_and_like_sizes_meet(tmp_path: Path) -> None:
    sizes = [10, 5_000, 20, 7_000, 30, 1_000_000, 40]
    table = pa.table([[f"file:///{n}" for n in range(7)], sizes, ["v"] * 7], schema=SCHEMA)
    pq.write_table(table, tmp_path / "i.parquet")
    todo = plan.make(tmp_path / "i.parquet", None, MODEL, tmp_path / "p.parquet")
    assert [block["bytes"].to_pylist() for block in todo.blocks(2, 64, 12_500)] == [[10, 20, 30, 40], [5_000, 7_000], [1_000_000]]
