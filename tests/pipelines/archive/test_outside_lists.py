"""Lists, inventories and globs as other programs write them, and lines that are no names."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deeplab import text_lists
from deeplab.data.datasets import LabelledFolder
from deeplab.errors import UserError
from pipelines.archive import shards
from pipelines.archive.image_lists import MISSING, ArchiveError
from pipelines.storage import filesystems, s3
from tests.material import listed, make_archive, make_dataset, make_tar, make_zip, photo

Columns = dict[str, list[object]]


def by_duckdb(columns: Columns, path: Path) -> None:
    data = pa.table(columns)  # noqa: F841, which DuckDB reads by its name
    duckdb.sql(f"COPY (SELECT uri, version, bytes::HUGEINT AS bytes FROM data) TO '{path}' (FORMAT parquet)")


def by_pandas(columns: Columns, path: Path, kind: str) -> None:
    frame = pandas.DataFrame(columns)
    frame["bytes"] = frame["bytes"].astype("float64")  # as where one is missing
    frame.astype({"uri": kind, "version": kind}).to_parquet(path)


def by_pyarrow(columns: Columns, path: Path, kind: pa.DataType) -> None:
    sizes = pa.array(columns["bytes"], pa.uint32())
    pq.write_table(pa.table({**{name: pa.array(columns[name]).cast(kind) for name in ("uri", "version")}, "bytes": sizes}), path)


WRITERS: dict[str, Callable[[Columns, Path], None]] = {
    "pyarrow string": lambda columns, path: by_pyarrow(columns, path, pa.string()),
    "pyarrow large_string": lambda columns, path: by_pyarrow(columns, path, pa.large_string()),
    "pyarrow string_view": lambda columns, path: by_pyarrow(columns, path, pa.string_view()),
    "pyarrow dictionary": lambda columns, path: by_pyarrow(columns, path, pa.dictionary(pa.int32(), pa.string())),
    "pandas object": lambda columns, path: by_pandas(columns, path, "object"),
    "pandas str": lambda columns, path: by_pandas(columns, path, "str"),
    "pandas arrow": lambda columns, path: by_pandas(columns, path, "string[pyarrow]"),
    "pandas category": lambda columns, path: by_pandas(columns, path, "category"),
    "polars": lambda columns, path: polars.DataFrame(columns).write_parquet(path),
    "polars pyarrow": lambda columns, path: polars.DataFrame(columns).write_parquet(path, use_pyarrow=True),
    "polars categorical": lambda columns, path: (
        polars.DataFrame(columns).with_columns(polars.col("uri", "version").cast(polars.Categorical)).write_parquet(path)
    ),
    "duckdb": by_duckdb,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_an_inventory_may_be_written_by_any_program(writer: str, tmp_path: Path) -> None:
    paths = sorted(make_archive(tmp_path / "photos", 2).rglob("*.jpg"))
    uris: list[object] = [path.as_uri() for path in paths]
    WRITERS[writer]({"uri": uris, "version": ["v1", "v2"], "bytes": [10, 2**31]}, tmp_path / "listing.parquet")
    assert listed(tmp_path / "listing.parquet", tmp_path) == {uris[0]: (10, "v1"), uris[1]: (2**31, "v2")}


@pytest.mark.parametrize("writer", ["pyarrow", "pandas", "polars", "duckdb"])
def test_a_parquet_shard_may_be_written_by_any_program(writer: str, tmp_path: Path) -> None:
    path, images = tmp_path / "shard.parquet", [photo(1), photo(2)]
    data = pa.table({"image": images})
    if writer == "pyarrow":
        pq.write_table(data.cast(pa.schema([("image", pa.binary_view())])), path)
    elif writer == "pandas":
        pandas.DataFrame({"image": images}).to_parquet(path)
    elif writer == "polars":
        polars.DataFrame({"image": images}).write_parquet(path)
    else:
        duckdb.sql(f"COPY (SELECT * FROM data) TO '{path}' (FORMAT parquet)")
    assert [shards.fetch(uri, version)[0] for uri, (_, version) in sorted(listed(path, tmp_path).items())] == images


def test_rows_without_a_version_are_looked_up_and_rows_without_a_name_left_out(tmp_path: Path) -> None:
    (first, second) = sorted(make_archive(tmp_path, 2).rglob("*.jpg"))
    columns = {"uri": [first.as_uri(), second.as_uri(), None], "version": ["v1", None, "v3"], "bytes": [1.5, float("nan"), 3]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    size, version = second.stat().st_size, filesystems.local_version(second.stat())
    assert listed(tmp_path / "x.parquet", tmp_path) == {first.as_uri(): (1, "v1"), second.as_uri(): (size, version)}


def test_relative_names_lie_beside_the_list_or_inventory_that_names_them(tmp_path: Path) -> None:
    folder = make_archive(tmp_path / "photos", 2)
    expected = listed(folder, tmp_path)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")]
    pq.write_table(pa.table({"uri": names}), folder / "listing.parquet")
    (folder / "listing.txt").write_text("\n".join(f"./{name}" for name in names))
    assert listed(folder / "listing.parquet", tmp_path) == listed(folder / "listing.txt", tmp_path) == expected


def test_relative_names_in_an_inventory_on_s3_lie_beside_it(s3_archive: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": ["a/photo 00.jpg", "../photos/./b/photo 01.jpg"]}), tmp_path / "x.parquet")
    s3.put(f"{s3_archive}/x.parquet", (tmp_path / "x.parquet").read_bytes())
    found = listed(f"{s3_archive}/x.parquet", tmp_path)
    assert found == {
        uri: (size, etag) for uri, size, etag in s3.list_objects(s3_archive) if uri.endswith(("photo 00.jpg", "photo 01.jpg"))
    }
    assert len(found) == 2


@pytest.mark.parametrize("suffix", ["tar", "zip", "parquet"])
def test_names_of_members_come_back_as_the_same_members(suffix: str, tmp_path: Path) -> None:
    shard = tmp_path / f"some #1 shard.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"image": [photo(1), photo(2)]}), shard)
    else:
        (make_zip if suffix == "zip" else make_tar)(shard, {"a/one #1.jpg": photo(1), "b/two%20.jpg": photo(2)})
    expected = listed(shard, tmp_path)
    uris = sorted(expected)
    pq.write_table(pa.table({"uri": uris, "version": [expected[uri][1] for uri in uris]}), tmp_path / "own.parquet")
    assert {uri: version for uri, (_, version) in listed(tmp_path / "own.parquet", tmp_path).items()} == {
        uri: version for uri, (_, version) in expected.items()
    }
    pq.write_table(pa.table({"uri": uris}), tmp_path / "names.parquet")
    assert listed(tmp_path / "names.parquet", tmp_path) == expected
    plain = "000000000" if suffix == "parquet" else "a/one #1.jpg"
    (tmp_path / "one.txt").write_text(f"{shard.name}#{plain}\n{shard.name}#none.jpg\n")
    found = listed(tmp_path / "one.txt", tmp_path)
    assert found[uris[0]] == expected[uris[0]] and [found[uri] for uri in found if uri != uris[0]] == [(0, MISSING)]


def test_a_hash_in_a_name_is_a_hash_where_no_shard_is_there(tmp_path: Path) -> None:
    names = ["#3 x.jpg", "gone.tar#a.jpg", "a#b.jpg", "##.jpg", "#.jpg"]
    for name in names:
        (tmp_path / name).write_bytes(photo(1))
    raw = (tmp_path / "a#b.jpg").as_uri().replace("%23", "#")
    (tmp_path / "list.txt").write_text("# a comment\n#\n#\tanother\n" + "\n".join([*names, raw]) + "\n")
    assert set(listed(tmp_path / "list.txt", tmp_path)) == {(tmp_path / name).as_uri() for name in names}


LISTS = {
    "utf-8": "b/photo_000.jpg\nümlaut.jpg\n".encode(),
    "byte order mark": codecs.BOM_UTF8 + "b/photo_000.jpg\nümlaut.jpg\n".encode(),
    "utf-16": "b/photo_000.jpg\r\nümlaut.jpg\r\n".encode("utf-16"),
    "utf-16 big endian": codecs.BOM_UTF16_BE + "b/photo_000.jpg\nümlaut.jpg\n".encode("utf-16-be"),
    "cr lf": b"b/photo_000.jpg\r\n" + "ümlaut.jpg\r\n".encode(),
    "cr": b"b/photo_000.jpg\r" + "ümlaut.jpg".encode(),
    "blanks": b"  b/photo_000.jpg \t\n\n   \n" + "ümlaut.jpg  ".encode(),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_text_list_may_be_written_by_any_editor(kind: str, tmp_path: Path) -> None:
    make_archive(tmp_path, 1)
    (tmp_path / "ümlaut.jpg").write_bytes(photo(1))
    (tmp_path / "list.txt").write_bytes(LISTS[kind])
    found = listed(tmp_path / "list.txt", tmp_path)
    assert set(found) == {(tmp_path / "b" / "photo_000.jpg").as_uri(), (tmp_path / "ümlaut.jpg").as_uri()}
    assert MISSING not in {version for _, version in found.values()}


def test_the_lists_of_a_data_set_may_be_written_by_any_editor(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "data", 3)
    plain = LabelledFolder(root, "train")
    for encode in (lambda text: codecs.BOM_UTF8 + text.encode(), lambda text: text.replace("\n", " \r\n").encode("utf-16")):
        for name in ("classes.txt", "train.txt"):
            (root / name).write_bytes(encode(text_lists_of(root / name)))
        again = LabelledFolder(root, "train")
        assert (again.classes, again.stems) == (plain.classes, plain.stems)


def text_lists_of(path: Path) -> str:
    return "\n".join(line for _, line in text_lists.lines(path.read_bytes(), str(path))) + "\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a.jpg\nb\0.jpg\n", "list.txt, line 2: holds a NUL"),
        (b"a.jpg\n\ncaf\xe9.jpg\n", "list.txt, line 3: not a readable UTF-8 list"),
        (b"a.jpg\n" + b"x" * 70_000, "list.txt, line 2: 70000 characters; up to 65536"),
        (b"a.jpg\n# b\ngs://bucket/c.jpg\n", "list.txt, line 3: gs://bucket/c.jpg: unknown scheme"),
        (b"file:///tmp/a%00.jpg\n", "list.txt, line 1: .* holds a NUL"),
        (b"s3:///key\n", "list.txt, line 1: s3:///key: s3://bucket/key is accepted"),
    ],
)
def test_a_line_that_is_no_name_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        listed(tmp_path / "list.txt", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_row_of_an_inventory_that_is_no_name_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": ["a.jpg", "b\0.jpg"]}), tmp_path / "x.parquet")
    with pytest.raises(ArchiveError, match=r"x\.parquet, row 2: .* NUL"):
        listed(tmp_path / "x.parquet", tmp_path)


def test_a_glob_takes_folders_that_have_just_this_name(tmp_path: Path) -> None:
    for name in ("photos [2024]", "photos 2", "other", "a*b"):
        make_archive(tmp_path / name, 2)
    assert len(listed(f"{tmp_path}/photos [2024]/**/*.jpg", tmp_path)) == 2
    assert len(listed(f"{tmp_path}/photos [0-9]/a/*.jpg", tmp_path)) == 1
    assert len(listed(f"{tmp_path}/a*b/*/photo_00[01].jpg", tmp_path)) == 2
    assert len(listed(f"{tmp_path}/*/a/*.jpg", tmp_path)) == 4
