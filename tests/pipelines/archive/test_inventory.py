"""What is listed of an archive, and what is said when it cannot be."""

from __future__ import annotations

import io
import os
from pathlib import Path

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from deeplab.images import heif
from deeplab.images.decoding import decode
from pipelines.archive import inventory
from pipelines.archive.image_lists import MISSING, ArchiveError
from pipelines.segment import plan
from pipelines.storage import filesystems
from tests.material import listed, make_archive, photo


def test_a_folder_is_listed_with_all_folders_below_it_and_true_sizes(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "photos", 5)
    rows = listed(archive, tmp_path)
    assert rows == {
        path.as_uri(): (path.stat().st_size, f"{path.stat().st_size}-{path.stat().st_mtime_ns}") for path in archive.rglob("*.jpg")
    }


@pytest.mark.parametrize(
    "name", ["with space.jpg", "percent%20.jpg", "hash#1.jpg", "ümlaut 犬.jpg", "line\nbreak.jpg", "q?.jpg", "[x].jpg"]
)
def test_any_file_name_comes_back_as_the_same_file(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / name).write_bytes(photo(1))
    (uri,) = listed(folder, tmp_path)
    data, version = filesystems.read_versioned(uri)
    assert data == photo(1)
    assert listed(folder, tmp_path)[uri] == (len(data), version)


def test_files_that_are_no_images_by_name_are_passed_over_and_counted(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "photos", 2)
    for name in ("notes.txt", "Thumbs.db", "DSC_1.NEF"):
        (archive / name).write_bytes(b"x")
    (archive / ".hidden.jpg").write_bytes(b"x")
    found = inventory.take(str(archive), tmp_path / "i.parquet")
    assert (found.images, found.passed_over) == (3, 2)  # NEF is an image that cannot be decoded: it will be an error row
    assert len(listed(archive, tmp_path, include=("*",))) == 5


def test_photos_of_phones_cameras_and_converters_lie_in_one_folder_and_decode(tmp_path: Path) -> None:
    rgb = np.asarray(Image.open(io.BytesIO(photo(1))))
    heif.register()
    archive = tmp_path / "photos"
    archive.mkdir()
    for name in ("IMG_1.HEIC", "IMG_2.JPG", "3.png", "4.heif", "5.avif"):
        Image.fromarray(rgb).save(archive / name)
    tifffile.imwrite(archive / "6.tif", np.moveaxis(rgb, 2, 0).astype(np.uint16) * 257, photometric="rgb", planarconfig="separate")
    (archive / "7.jxl").write_bytes(imagecodecs.jpegxl_encode(rgb))
    uris = listed(archive, tmp_path)
    assert len(uris) == 7
    for uri in uris:
        error = np.abs(decode(filesystems.read_versioned(uri)[0]) - rgb.astype(float))
        assert error.mean() < 8, uri


def test_include_exclude_and_limit_choose_by_name_and_path(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "photos", 6)
    assert len(listed(archive, tmp_path, include=("a/*",))) == 3
    assert len(listed(archive, tmp_path, exclude=("*_001.jpg", "b/*"))) == 2
    assert len(listed(archive, tmp_path, limit=4)) == 4


def test_links_to_folders_are_not_followed_so_a_loop_ends(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "photos", 2)
    (archive / "a" / "again").symlink_to(archive)
    assert len(listed(archive, tmp_path)) == 2


def test_a_dangling_link_is_listed_so_that_it_becomes_an_error_row(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "photos", 1)
    (archive / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert listed(archive, tmp_path)[(archive / "gone.jpg").as_uri()] == (0, MISSING)


def test_a_glob_and_a_single_file(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "photos", 4)
    assert len(listed(f"{archive}/**/*.jpg", tmp_path)) == 4
    assert len(listed(f"{archive}/a/*.jpg", tmp_path)) == 2
    assert len(listed(archive / "a" / "photo_001.jpg", tmp_path)) == 1


def test_a_list_names_files_beside_itself_or_by_uri_and_keeps_missing_ones(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "photos", 2)
    absolute = (archive / "a" / "photo_001.jpg").as_uri()
    (archive / "list.txt").write_text(f"# comment\nb/photo_000.jpg\n{absolute}\n\nnot-there.jpg\nb/photo_000.jpg\n")
    rows = listed(archive / "list.txt", tmp_path)
    assert set(rows) == {(archive / "b" / "photo_000.jpg").as_uri(), absolute, (archive / "not-there.jpg").as_uri()}
    assert rows[(archive / "not-there.jpg").as_uri()] == (0, MISSING)


def test_an_inventory_is_taken_as_it_is_and_completed_where_it_has_uris_only(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "photos", 2)
    uris = sorted(path.as_uri() for path in archive.rglob("*.jpg"))
    pq.write_table(pa.table({"uri": uris, "version": ["v1", "v2"], "bytes": [10, 20]}), tmp_path / "full.parquet")
    assert listed(tmp_path / "full.parquet", tmp_path) == {uris[0]: (10, "v1"), uris[1]: (20, "v2")}
    pq.write_table(pa.table({"uri": uris}), tmp_path / "bare.parquet")
    assert listed(tmp_path / "bare.parquet", tmp_path) == listed(archive, tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "nothing-here", "no such folder or file"),
        (lambda root: make_folder(root / "empty"), "no images found"),
        (lambda root: make_folder(root / "texts", "a.txt", "b.csv"), "2 files passed over by name"),
        (lambda root: write_table(root / "x.parquet", {"path": ["a"]}), "needs a text column `uri`"),
        (lambda root: write_table(root / "x.parquet", {"uri": [1]}), "column `uri` of an inventory is text; here it is int64"),
        (lambda root: write_table(root / "x.parquet", {"uri": ["a"], "bytes": ["b"]}), "`bytes` .* is numbers; here it is string"),
        (lambda root: write_bytes(root / "x.parquet", b"no parquet"), "not a readable Parquet file"),
        (lambda root: write_bytes(root / "x.txt", b"\xff\xfe\x00"), "not a readable UTF-8 list"),
        (lambda root: "gs://bucket/photos", "unknown scheme"),
    ],
)
def test_what_cannot_be_listed_is_said_with_what_is_accepted(tmp_path: Path, make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((ArchiveError, filesystems.StorageError), match=message):
        inventory.take(str(make(tmp_path)), tmp_path / "inventory.parquet")


def test_memory_does_not_grow_with_an_inventory_that_is_taken_over_and_planned(tmp_path: Path) -> None:
    """pyarrow's own readers would hold all that they have read of the file, here 29 MB."""
    random, path = np.random.default_rng(0), tmp_path / "listed.parquet"
    schema = pa.schema([("uri", pa.string()), ("version", pa.string()), ("bytes", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, 450_000, 50_000):
            uris = [f"s3://bucket/{index:07d}.jpg" for index in range(start, start + 50_000)]
            writer.write_table(pa.table([uris, [random.bytes(32).hex() for _ in uris], [1] * 50_000], schema=schema))
    size, before, most = path.stat().st_size, pa.total_allocated_bytes(), 0
    assert size > 15_000_000
    for number, _ in enumerate(inventory._entries(str(path))):
        if number % 10_000 == 0:
            most = max(most, pa.total_allocated_bytes() - before)
    planned = plan.Plan(path, "m", 0, 450_000, 0, 450_000)
    for block in planned.blocks(4, 256, 1e9):
        most = max(most, pa.total_allocated_bytes() - before)
        assert block.num_rows
    assert most < size / 1.5


@pytest.mark.skipif(os.geteuid() == 0, reason="root can list any folder: run as another user")
def test_a_folder_that_cannot_be_listed_is_an_entry_of_its_own_unless_it_is_the_archive(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "photos", 2)
    (archive / "a").chmod(0)
    try:
        assert listed(archive, tmp_path)[(archive / "a").as_uri()] == (0, MISSING)
        with pytest.raises(ArchiveError, match=r"photos/a: cannot be listed \(Permission denied\)"):
            inventory.take(str(archive / "a"), tmp_path / "inventory.parquet")
    finally:
        (archive / "a").chmod(0o755)


def make_folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_text("x")
    return path


def write_table(path: Path, columns: dict[str, list[object]]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def write_bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
