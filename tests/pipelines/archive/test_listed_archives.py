"""Archives that a table lists or holds: S3 Inventory reports, and Parquet files with image bytes."""

from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.orc as paorc
import pyarrow.parquet as pq
import pytest

from pipelines.archive import inventory, parquet_shards, shards
from pipelines.options import SegmentOptions
from pipelines.segment import run
from pipelines.storage import filesystems, s3, storage_errors
from pipelines.table import counts
from pipelines.table.results_table import ResultsTable
from tests.material import photo


def taken(archive: str, tmp_path: Path, **options: object) -> list[dict[str, object]]:
    inventory.take(archive, tmp_path / "inventory.parquet", **options)  # type: ignore[arg-type]
    rows = pq.read_table(tmp_path / "inventory.parquet").to_pylist()
    return sorted(rows, key=lambda row: str(row["uri"]))


def report(s3_prefix: str, archive: str, kind: str) -> str:
    """An S3 Inventory report of the archive as AWS writes it, with an older version and a delete marker among its lines."""
    bucket = s3.split(archive)[0]
    rows = [(bucket, s3.split(uri)[1], True, False, size, etag) for uri, size, etag in s3.list_objects(archive)]
    first = rows[0]
    rows += [(bucket, "photos/gone.jpg", True, True, None, None), (bucket, "photos/old.jpg", False, False, 5, "aa")]
    rows += [(bucket, f"{first[1]}/", True, False, 0, "bb")]
    columns = [list(column) for column in zip(*rows, strict=True)]
    if kind == "CSV":
        lines = "".join(
            f'"{b}","{quote_plus(k, safe="/")}","{str(latest).lower()}","{str(dead).lower()}","{size or ""}","{etag or ""}"\n'
            for b, k, latest, dead, size, etag in rows
        )
        data, name = gzip.compress(lines.encode()), "data/1.csv.gz"
        schema = "Bucket, Key, IsLatest, IsDeleteMarker, Size, ETag"
    else:
        table = pa.table(dict(zip(("bucket", "key", "is_latest", "is_delete_marker", "size", "e_tag"), columns, strict=True)))
        out = io.BytesIO()
        (pq.write_table if kind == "Parquet" else paorc.write_table)(table, out)
        data, name, schema = out.getvalue(), f"data/1.{kind.lower()}", "message s3.inventory { ... }"
    target, key = s3.split(s3_prefix)
    s3.put(f"{s3_prefix}/{name}", data)
    manifest = {
        "sourceBucket": bucket, "destinationBucket": f"arn:aws:s3:::{target}", "version": "2016-11-30", "fileFormat": kind,
        "fileSchema": schema, "files": [{"key": f"{key}/{name}", "size": len(data)}],
    }  # fmt: skip
    s3.put(f"{s3_prefix}/manifest.json", json.dumps(manifest).encode())
    return f"{s3_prefix}/manifest.json"


@pytest.mark.parametrize("kind", ["CSV", "ORC", "Parquet"])
def test_an_inventory_report_is_the_listing_it_was_made_of(kind: str, s3: str, s3_archive: str, tmp_path: Path) -> None:
    assert taken(report(f"{s3}/report", s3_archive, kind), tmp_path) == taken(s3_archive, tmp_path)


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (b"{", "JSONDecodeError"),
        (b'{"files": []}', "fileFormat"),
        (b'{"fileFormat": "XML", "fileSchema": "", "destinationBucket": "b", "files": []}', "'XML'"),
        (b'{"fileFormat": "CSV", "fileSchema": "A", "destinationBucket": "b", "files": [{"key": "nowhere"}]}', "nowhere"),
    ],
)
def test_a_report_that_cannot_be_read_is_refused_by_name(manifest: bytes, reason: str, s3: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(manifest)
    with pytest.raises(filesystems.StorageError, match=reason) as refused:
        taken(str(path), tmp_path)
    assert "S3 Inventory manifest" in str(refused.value)


PHOTOS = [photo(index) for index in range(7)]


def shard(path: Path, kind: str) -> Path:
    column = [{"bytes": data, "path": f"{index}.jpg"} for index, data in enumerate(PHOTOS)] if kind == "struct" else PHOTOS
    pq.write_table(pa.table({"image": column, "label": list(range(7))}), path, row_group_size=3)
    return path


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_every_row_of_a_parquet_file_with_image_bytes_is_an_image(kind: str, tmp_path: Path) -> None:
    path = shard(tmp_path / "train.parquet", kind)
    rows = taken(str(path), tmp_path)
    assert [row["uri"] for row in rows] == [f"{path.as_uri()}#{index:09d}" for index in range(7)]
    assert [shards.fetch(row["uri"], row["version"])[0] for row in rows] == PHOTOS


def test_a_folder_of_parquet_shards_and_photos_is_segmented_whole(tmp_path: Path, model: Path, running_ray: None) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    path = shard(root / "train.parquet", "struct")
    (root / "loose.jpg").write_bytes(photo(9))
    pq.write_table(pa.table({"uri": ["x"], "mask": [b""]}), root / "part-0.parquet")  # such as our own table's: no images
    summary = run.segment(SegmentOptions(archive=str(root), results=str(tmp_path / "r"), model=str(model), crf=False))
    assert (summary.images, summary.errors) == (8, 0)
    found = ResultsTable.open(str(tmp_path / "r")).dataset().to_table(columns=["uri"])["uri"].to_pylist()
    assert sum(uri.startswith(f"{path.as_uri()}#") for uri in found) == 7


def test_rows_without_bytes_and_changed_shards_are_reasons_and_not_outages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": [PHOTOS[0], None]}), path)
    first, second = taken(str(path), tmp_path)
    with pytest.raises(shards.MemberError, match="no image bytes"):
        shards.fetch(second["uri"], second["version"])
    parquet_shards._group.cache_clear()
    pq.write_table(pa.table({"image": [PHOTOS[1], PHOTOS[2]]}), path)
    with pytest.raises(shards.MemberError, match="changed after it was listed"):
        shards.fetch(first["uri"], first["version"])
    again = taken(str(path), tmp_path)
    monkeypatch.setattr(parquet_shards, "MAX_GROUP_BYTES", 10)
    with pytest.raises(shards.MemberError, match="write smaller ones"):
        shards.fetch(again[0]["uri"], again[0]["version"])


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_a_damaged_row_group_costs_its_own_rows_only(kind: str, tmp_path: Path) -> None:
    path = shard(tmp_path / "train.parquet", kind)
    rows = taken(str(path), tmp_path)
    broken = bytearray(path.read_bytes())
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    broken[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    before = path.stat()
    path.write_bytes(broken)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as where a disk rots: nobody wrote it
    for index, row in enumerate(rows):
        if index in (3, 4, 5):
            with pytest.raises(shards.MemberError, match="its row group is damaged"):
                shards.fetch(row["uri"], row["version"])
        else:
            assert shards.fetch(row["uri"], row["version"])[0] == PHOTOS[index]


def test_a_store_that_is_away_is_outlasted_and_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard(tmp_path / "train.parquet", "binary")
    rows = taken(str(path), tmp_path)
    read, tries = filesystems.read_range, []

    def second_time(*arguments: Any) -> Any:
        tries.append(arguments)
        if len(tries) == 2:
            raise storage_errors.Outage("connection lost")
        return read(*arguments)

    monkeypatch.setattr(filesystems, "read_range", second_time)
    assert shards.fetch(rows[0]["uri"], rows[0]["version"])[0] == PHOTOS[0]
    assert len(tries) > 2

    def gone(*arguments: Any) -> Any:
        raise storage_errors.Outage("connection lost")

    monkeypatch.setattr(filesystems, "read_range", gone)
    monkeypatch.setattr(filesystems, "OUTAGE_SECONDS", -1.0)
    parquet_shards._group.cache_clear()
    with pytest.raises(filesystems.StorageError, match="connection lost"):
        shards.fetch(rows[0]["uri"], rows[0]["version"])


def test_numbers_leave_reasons_but_not_names() -> None:
    import duckdb

    errors = ["over 12,000 x 9.5 pixels", "320x240 is cut", "JPEG2000, AVIF", "7 of 8"]
    query = f"SELECT {counts.reason_of('e')} FROM (SELECT ? AS e)"
    found = [duckdb.execute(query, [error]).fetchall()[0][0] for error in errors]
    assert found == ["over N x N pixels", "NxN is cut", "JPEG2000, AVIF", "N of N"]
