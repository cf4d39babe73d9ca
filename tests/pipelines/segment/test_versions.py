"""The version that was listed and the one that was read: one row for an image, whichever of them the next run compares with."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from pipelines.exports.source import Masks
from pipelines.options import SegmentOptions
from pipelines.segment import plan
from pipelines.segment.run import SegmentProgress, segment
from pipelines.storage import filesystems
from pipelines.table import counts
from pipelines.table.commit import Committer, PartFile, row_key, without_rows, write_part
from pipelines.table.replacement import Replacement
from pipelines.table.results_table import ResultsTable
from pipelines.table.schema import ADDED, FILE_SCHEMA, FORMAT, FORMAT_KEY, MODEL_KEY, SCHEMA
from pipelines.upkeep import verification
from pipelines.upkeep.compaction import compact
from tests.material import make_archive, photo
from tests.pipelines.segment.test_plan import planned, write_inventory

MODEL = "m@000000000000"
LATER = {field.name for field in ADDED}


def part(table: ResultsTable, *rows: tuple[str, str, str | None, str], run: str = "r") -> PartFile:
    """A part file of (uri, version, read version, status)."""
    columns = ("uri", "version", "read_version", "status")
    base = {"error": "decode: empty", "run": run, "segmented_at": datetime.now(UTC)}
    made = [{**base, **dict(zip(columns, row, strict=True))} for row in rows]
    return write_part(table.uri, MODEL, pa.Table.from_pylist(made, schema=FILE_SCHEMA))


@pytest.fixture
def older(tmp_path: Path) -> ResultsTable:
    """A table as earlier releases made it, with two error rows."""
    fields = [field for field in SCHEMA if field.name not in LATER]
    place = tmp_path / "results"
    card = '{"name": "m", "classes": [{"name": "background", "colour": [0, 0, 0]}]}'
    configuration = {FORMAT_KEY: FORMAT, MODEL_KEY + MODEL: card}
    DeltaTable.create(str(place), pa.schema(fields), "error", partition_by=["model"], configuration=configuration,
                      raise_if_key_not_exists=False)  # fmt: skip
    table = ResultsTable.open(str(place))
    made = part(table, ("file:///a", "1", None, "error"), ("file:///b", "1", None, "error"))
    file = place / made.path
    pq.write_table(pq.read_table(file, partitioning=None).drop_columns(sorted(LATER)), file)
    add = made.add_action(MODEL)
    add.size = file.stat().st_size
    said = json.loads(add.stats)  # they said nothing of the other columns
    for kind in ("minValues", "maxValues", "nullCount"):
        said[kind] = {name: said[kind][name] for name in ("uri", "status", "run")}
    add.stats = json.dumps(said)
    table.commit("chunk-1", 1, [add], model=MODEL)
    return ResultsTable.open(str(place))


def test_a_table_of_an_earlier_release_is_read_and_verified_as_it_is(older: ResultsTable, tmp_path: Path) -> None:
    version = older.version
    assert older.query("SELECT uri, read_version FROM results ORDER BY 1").fetchall() == [("file:///a", None), ("file:///b", None)]
    assert verification.verify(older).problems == []
    todo = plan.make(write_inventory(tmp_path / "i", [("file:///a", "1"), ("file:///c", "1")]), older, MODEL, tmp_path / "p")
    assert planned(todo) == [("file:///c", "1")]
    assert ResultsTable.open(older.uri).version == version


def test_a_run_adds_the_columns_once_and_every_reader_sees_old_and_new_files(older: ResultsTable) -> None:
    with ThreadPoolExecutor(4) as pool:  # runs that begin at the same moment
        tables = list(pool.map(ResultsTable.ensure, [older.uri] * 4))
    assert {table.version for table in tables} == {older.version + 1}
    assert list(tables[0].models()) == [MODEL]
    table = tables[0]
    table.commit("chunk-2", 1, [part(table, ("file:///c", "1", "2", "error")).add_action(MODEL)], model=MODEL)
    expected = [("file:///a", None), ("file:///b", None), ("file:///c", "2")]
    place = str(filesystems.local_path(older.uri))
    for _ in range(2):
        assert sorted(polars.read_delta(place).select("uri", "read_version").rows()) == expected
        data = DeltaTable(place).to_pyarrow_dataset()
        assert duckdb.sql("SELECT uri, read_version FROM data ORDER BY uri").fetchall() == expected
        assert sorted(zip(*data.to_table(columns=["uri", "read_version"]).to_pydict().values(), strict=True)) == expected
        assert verification.verify(ResultsTable.open(older.uri)).problems == []
        compact(ResultsTable.open(older.uri))
    names = pq.read_schema(Path(place) / next(iter(ResultsTable.open(older.uri).files(MODEL)))).names
    assert names[-len(ADDED) :] == [field.name for field in ADDED]


FILTERS = [
    ("read_version IS NULL", "ab"), ("read_version IS NOT NULL", "c"), ("read_version = '2'", "c"), ("version > '0'", "abc"),
    ("height IS NULL", "abc"), ("height > 0", ""), ("error LIKE 'd%'", "abc"), ("error IS NULL", ""), ("run < 'r'", ""),
    ("segmented_at > TIMESTAMP '2020-01-01'", "abc"), ("uri = 'file:///c' OR error = 'x'", "c"),
]  # fmt: skip


@pytest.mark.parametrize("condition", FILTERS)
def test_any_column_can_be_asked_for_in_files_of_every_release(condition: tuple[str, str], older: ResultsTable) -> None:
    where, expected = condition
    table = ResultsTable.ensure(older.uri)
    table.commit("chunk-2", 1, [part(table, ("file:///c", "1", "2", "error")).add_action(MODEL)], model=MODEL)
    assert "".join(uri[-1] for (uri,) in table.query(f"SELECT uri FROM results WHERE {where} ORDER BY 1").fetchall()) == expected
    frame = polars.scan_delta(str(filesystems.local_path(table.uri))).select(polars.exclude("class_pixels", "mask"))
    found = polars.SQLContext(results=frame).execute(
        f"SELECT uri FROM results WHERE {where.replace('TIMESTAMP ', '')} ORDER BY uri"
    )
    assert "".join(uri[-1] for (uri,) in found.collect().rows()) == expected


def test_error_rows_and_doubles_are_found_in_files_of_an_earlier_release(older: ResultsTable) -> None:
    table = ResultsTable.ensure(older.uri)
    mine = part(table, ("file:///a", "1", None, "ok"), ("file:///c", "1", None, "ok"), run="mine")
    committer = Committer(table.uri, MODEL, "mine", 0)
    committer.add([mine])
    assert committer.commit().left_out == 1
    table.refresh()
    parts, removes = without_rows(table, MODEL, [row_key("file:///b", "1"), row_key("file:///c", "1")], Replacement(errors=True))
    table.commit("retry", 1, [part.add_action(MODEL) for part in parts], removes, model=MODEL)
    assert table.query("SELECT uri FROM results ORDER BY 1").fetchall() == [("file:///a",), ("file:///c",)]


def test_rows_count_by_the_version_that_was_listed_and_by_the_one_that_was_read(tmp_path: Path) -> None:
    table = ResultsTable.ensure(str(tmp_path / "results"))
    rows = [("file:///a", "1", "2", "ok"), ("file:///b", "1", "2", "error"), ("file:///c", "1", None, "ok")]
    table.commit("chunk-1", 1, [part(table, *rows).add_action(MODEL)], model=MODEL)
    listed = [(f"file:///{name}", version) for name in "abc" for version in "123"]

    def todo(retry: bool = False) -> set[tuple[str, str]]:
        wanted = set()
        for image in listed:  # one by one, as one inventory has one version of an image
            made = plan.make(write_inventory(tmp_path / "i", [image]), table, MODEL, tmp_path / "p", Replacement(errors=retry))
            wanted |= set(planned(made))
        return wanted

    done = {("file:///a", "1"), ("file:///a", "2"), ("file:///c", "1")}
    errors = {("file:///b", "1"), ("file:///b", "2")}
    assert todo() == set(listed) - done - errors
    assert todo(retry=True) == set(listed) - done
    # What another run brought is left out by the same rule, and a retry takes the error row out by it.
    mine = part(table, *((uri, version, None, "ok") for uri, version in listed), run="mine")
    parts, removes = without_rows(table, MODEL, [row_key("file:///b", "2")], Replacement(errors=True))
    assert [kept.rows for kept in parts] == [2] and len(removes) == 1
    committer = Committer(table.uri, MODEL, "mine", 0)
    committer.add([mine])
    assert committer.commit().images == len(listed) - len(done | errors)


def test_an_image_is_lost_when_only_a_row_of_another_version_is_there(tmp_path: Path) -> None:
    table = ResultsTable.ensure(str(tmp_path / "results"))
    rows = part(table, ("file:///a", "1", "2", "ok"), ("file:///b", "1", None, "ok"))
    table.commit("chunk-1", 1, [rows.add_action(MODEL)], model=MODEL)
    for listed, lost in ((("1", "1"), 0), (("2", "1"), 0), (("3", "1"), 1), (("2", "2"), 1)):
        rows = [(f"file:///{name}", version) for name, version in zip("ab", listed, strict=True)]
        assert counts.lost_and_doubled(table, MODEL, write_inventory(tmp_path / "p.parquet", rows)) == (lost, 0)


def test_an_image_that_an_inventory_names_with_two_versions_is_done_once(tmp_path: Path) -> None:
    table = ResultsTable.ensure(str(tmp_path / "results"))
    inventory = write_inventory(tmp_path / "i", [("file:///a", "1"), ("file:///a", "2")])
    first = planned(plan.make(inventory, table, MODEL, tmp_path / "p"))
    assert len(first) == 1
    table.commit("chunk-1", 1, [part(table, (*first[0], None, "ok")).add_action(MODEL)], model=MODEL)
    assert plan.make(inventory, table, MODEL, tmp_path / "p").images == 0


def test_an_export_compares_a_photo_with_the_bytes_that_were_segmented(tmp_path: Path) -> None:
    (path,) = make_archive(tmp_path / "photos", 1).rglob("*.jpg")
    table = ResultsTable.ensure(str(tmp_path / "results"))
    table.register(MODEL, {"classes": [{"name": "background", "colour": [0, 0, 0]}]})
    row = (path.as_uri(), "etag-of-an-inventory", filesystems.local_version(path.stat()), "ok")
    table.commit("chunk-1", 1, [part(table, row).add_action(MODEL)], model=MODEL)
    source = Masks(table, MODEL, tmp_path / "out")
    (mask,) = source
    assert source.photo(mask, unchanged=True) == path.read_bytes()
    path.write_bytes(photo(5))
    assert source.photo(mask, unchanged=True) is None


def options(archive: object, results: object, model: Path, **more: object) -> SegmentOptions:
    defaults: dict[str, object] = {"crf": False, "scales": (1.0,), "max_error_rate": 1.0}
    return SegmentOptions(archive=str(archive), results=str(results), model=str(model), **{**defaults, **more})  # type: ignore[arg-type]


def stored(results: object) -> dict[str, tuple[str, str | None, str]]:
    """(version, read version, status) by file name; fails where an image has two rows."""
    found = ResultsTable.open(str(results)).query("SELECT uri, version, read_version, status FROM results").fetchall()
    assert len({row[0] for row in found}) == len(found)
    return {row[0].rsplit("/", 1)[-1]: row[1:] for row in found}


@pytest.mark.usefixtures("running_ray")
def test_an_inventory_with_versions_of_its_own_is_done_once(tmp_path: Path, model: Path) -> None:
    paths = sorted(make_archive(tmp_path / "photos", 3).rglob("*.jpg"))
    listing, results = tmp_path / "listing.parquet", tmp_path / "results"
    pq.write_table(pa.table({"uri": [path.as_uri() for path in paths], "version": ["etag1", "etag2", "etag3"]}), listing)
    assert [segment(options(listing, results, model)).images for _ in range(3)] == [3, 0, 0]
    expected = [(f"etag{n}", filesystems.local_version(path.stat()), "ok") for n, path in enumerate(paths, 1)]
    assert sorted(stored(results).values()) == expected
    verdict = verification.verify(ResultsTable.open(str(results)), str(listing))
    assert (verdict.problems, verdict.pending) == ([], 0)
    assert segment(options(tmp_path / "photos", results, model)).already == 3  # the files' own versions are known, too


@pytest.mark.usefixtures("running_ray")
def test_a_photo_that_changes_between_listing_and_reading_is_done_once(tmp_path: Path, model: Path) -> None:
    archive, results = make_archive(tmp_path / "photos", 3), tmp_path / "results"
    changed, broken = sorted(archive.rglob("*.jpg"))[:2]
    before = {path.name: filesystems.local_version(path.stat()) for path in archive.rglob("*.jpg")}

    def meanwhile(progress: SegmentProgress) -> None:
        if progress.phase == "plan":
            changed.write_bytes(photo(77))
            broken.write_bytes(photo(78)[:300])

    assert segment(options(archive, results, model), meanwhile).images == 3
    rows, now = stored(results), {path.name: filesystems.local_version(path.stat()) for path in (changed, broken)}
    assert {name: row[0] for name, row in rows.items()} == before
    assert {name: row[1:] for name, row in rows.items() if row[1] is not None} == {
        changed.name: (now[changed.name], "ok"),
        broken.name: (now[broken.name], "error"),
    }
    assert segment(options(archive, results, model)).images == 0
    assert verification.verify(ResultsTable.open(str(results)), str(archive)).pending == 0
    assert segment(options(archive, results, model, retry_errors=True)).images == 1
    assert stored(results)[broken.name] == (now[broken.name], None, "error")
