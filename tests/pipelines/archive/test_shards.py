"""Tar and zip shards: members read by offset, hostile ones refused by name, changed shards noticed."""

from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipelines.archive import shards
from pipelines.archive.image_bytes import read
from pipelines.archive.image_lists import ArchiveError
from pipelines.archive.shards import name_of
from pipelines.options import SegmentOptions
from pipelines.segment import run
from pipelines.table.results_table import ResultsTable
from tests.material import listed_versions, make_tar, make_zip, photo

PHOTOS = {f"{folder}/photo {index} #é.jpg": photo(index) for folder in "ab" for index in range(3)}


@pytest.mark.parametrize("kind", ["tar", "pax", "zip", "stored"])
def test_every_member_is_read_back_by_offset(kind: str, tmp_path: Path) -> None:
    members = {**PHOTOS, f"{'long' * 60}/x.jpg": photo(9), "notes.txt": b"no image"}
    if kind in ("tar", "pax"):
        path = make_tar(tmp_path / "shard.tar", members)
    else:
        path = make_zip(tmp_path / "shard.zip", members, zipfile.ZIP_DEFLATED if kind == "zip" else zipfile.ZIP_STORED)
    found = listed_versions(str(path), tmp_path)
    assert {shards.split(uri)[1]: shards.fetch(uri, version)[0] for uri, version in found.items()} == {  # type: ignore[index]
        name: data for name, data in members.items() if name != "notes.txt"
    }


def test_shards_in_a_folder_stand_beside_loose_photos(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    make_tar(root / "one.tar", PHOTOS)
    (root / "loose.jpg").write_bytes(photo(7))
    assert len(listed_versions(str(root), tmp_path)) == 7


def test_members_of_a_shard_on_s3_are_read_by_range(s3: str, tmp_path: Path) -> None:
    from pipelines.storage import s3 as store

    store.put(f"{s3}/shards/one.tar", make_tar(tmp_path / "one.tar", PHOTOS).read_bytes())
    store.put(f"{s3}/shards/two.zip", make_zip(tmp_path / "two.zip", PHOTOS).read_bytes())
    found = listed_versions(f"{s3}/shards", tmp_path)
    assert len(found) == 12
    for uri, version in found.items():
        assert shards.fetch(uri, version) == (PHOTOS[shards.split(uri)[1]], version)  # type: ignore[index]


def test_hostile_members_become_reasons(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "bad.tar", {"../../etc/x.jpg": photo(0), "/root.jpg": photo(1), "ok.jpg": photo(2)})
    with tarfile.open(path, "a") as shard:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        shard.addfile(link)
    reasons = {uri.split("#")[1]: read(uri, version)[2] for uri, version in listed_versions(str(path), tmp_path).items()}
    assert reasons == {
        "../../etc/x.jpg": "read: the member's name leads outside its shard",
        "/root.jpg": "read: the member's name leads outside its shard",
        "ok.jpg": None,
        "link.jpg": "read: a link or device inside a shard is not followed",
    }


def test_a_bomb_is_refused_within_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_MEMBER_BYTES", 1 << 20)
    path = make_zip(tmp_path / "bomb.zip", {"bomb.jpg": bytes(64 << 20)})
    ((uri, version),) = listed_versions(str(path), tmp_path).items()
    assert read(uri, version)[2] == "read: the member unpacks to over 1048576 bytes"


def test_a_shard_that_changed_since_it_was_listed_is_noticed(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "shard.tar", PHOTOS)
    found = listed_versions(str(path), tmp_path)
    make_tar(path, {name: data + b"x" for name, data in PHOTOS.items()})
    os.utime(path, (1, 1))
    uri, version = next(iter(found.items()))
    assert read(uri, version)[2] == "read: the shard changed after it was listed; the next run lists it again"


@pytest.mark.parametrize("name", ["cut.tar", "cut.zip", "text.tar", "text.zip", "gz.tar"])
def test_a_damaged_or_compressed_shard_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.startswith("cut"):
        make = make_tar if name.endswith("tar") else make_zip
        path.write_bytes(make(path, PHOTOS).read_bytes()[:1500])
    elif name.startswith("text"):
        path.write_bytes(b"this is text " * 100)
    else:
        with tarfile.open(path, "w:gz") as shard:
            shard.addfile(tarfile.TarInfo("x.jpg"))
    with pytest.raises(ArchiveError, match=f"no images found; .*{name}: read: not a readable {name[-3:]}"):
        listed_versions(str(path), tmp_path)


def test_names_for_people_show_the_member_as_a_file_in_its_shard() -> None:
    assert name_of(shards.join("file:///data/a%20b.tar", "x y#1.jpg")) == "/data/a b.tar/x y#1.jpg"
    assert name_of("file:///data/a%23b.jpg") == "/data/a#b.jpg"
    assert name_of(shards.join("s3://b/one.tar", "x#1.jpg")) == "s3://b/one.tar/x#1.jpg"


def test_a_shard_becomes_rows_and_a_second_run_has_nothing_to_do(tmp_path: Path, model: Path, running_ray: None) -> None:
    path = make_tar(tmp_path / "shard.tar", {**PHOTOS, "bad.jpg": b"no jpeg"})
    options = SegmentOptions(
        archive=str(path), results=str(tmp_path / "r"), model=str(model), crf=False, scales=(1.0,), max_error_rate=0.5
    )
    first = run.segment(options)
    assert (first.images, first.errors) == (7, 1)
    assert run.segment(options).images == 0
    table = ResultsTable.open(str(tmp_path / "r"))
    uris = {uri for (uri,) in table.query("SELECT uri FROM results WHERE status = 'ok'").fetchall()}
    assert uris == {shards.join(path.as_uri(), name) for name in PHOTOS}
