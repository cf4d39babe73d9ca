"""Entries that are no files and files that do not read: each is one error row with its reason, and all else is done."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError, ParamValidationError

from pipelines.archive import inventory, shards
from pipelines.archive.image_bytes import read
from pipelines.archive.image_lists import ArchiveError
from pipelines.options import SegmentOptions
from pipelines.segment import read_ahead
from pipelines.segment.run import TooManyErrors, segment
from pipelines.storage import filesystems, local_files, s3_errors, storage_errors
from pipelines.table.results_table import ResultsTable
from pipelines.upkeep import verification
from pipelines.upkeep.status import status
from tests.material import make_archive, make_tar, make_zip, photo


def reasons(archive: object, tmp_path: Path, **options: object) -> dict[str, str | None]:
    """Of everything in an archive, by the end of its URI: why it cannot be read, or None."""
    found = inventory.take(str(archive), tmp_path / "inventory.parquet", **options)  # type: ignore[arg-type]
    rows = pq.read_table(found.path).to_pylist()
    return {row["uri"].rsplit("/", 1)[-1]: read(row["uri"], row["version"])[2] for row in rows}


def make_deep(folder: Path) -> None:
    """Folders in folders until the innermost path is longer than the system takes: nobody, root neither, can list it."""
    here = os.getcwd()
    folder.mkdir()
    os.chdir(folder)
    try:
        for _ in range(17):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
    finally:
        os.chdir(here)


def make_odd(root: Path, tmp_path: Path) -> dict[str, str]:
    """One of every odd entry below `root`; name -> how the reason of its row begins."""
    os.mkfifo(root / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(root)  # the path of a socket is short
        listener.bind("socket.jpg")
        os.chdir(here)
    (root / "device.jpg").symlink_to("/dev/null")
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    (root / "sector.jpg").symlink_to("/proc/self/mem")  # reading its first byte is EIO, as on a bad sector
    (root / "empty.jpg").touch()
    with (root / "sparse.jpg").open("wb") as stream:
        stream.truncate(storage_errors.MEMORY_BYTES + 1)
    (root / "text.zip").write_text("no zip")
    (root / "text.parquet").write_text("no Parquet")
    (root / "gone.zip").symlink_to(tmp_path / "nowhere")
    os.mkfifo(root / "pipe.tar")
    make_deep(root / "deep")
    expected = {
        "pipe.jpg": "read: it is a named pipe, not a file",
        "socket.jpg": "read: it is a socket, not a file",
        "device.jpg": "read: it is a device, not a file",
        "loop.jpg": "read: Too many levels of symbolic links",
        "dangling.jpg": "read: No such file or directory",
        "sector.jpg": "read: Input/output error",
        "empty.jpg": "decode: empty file (0 bytes)",
        "sparse.jpg": f"read: it has {storage_errors.MEMORY_BYTES + 1} bytes, more than this machine's memory",
        "text.zip": "read: not a readable zip (File is not a zip file)",
        "text.parquet": "read: not a readable parquet (",
        "gone.zip": "read: No such file or directory",
        "pipe.tar": "read: it is a named pipe, not a file",
        "d" * 250: "read: File name too long",
    }
    if os.geteuid() != 0:  # root may list and read anything
        (root / "lost+found").mkdir(mode=0)
        (root / "barred.jpg").write_bytes(photo(1))
        (root / "barred.jpg").chmod(0)
        expected |= {"lost+found": "read: Permission denied", "barred.jpg": "read: Permission denied"}
    return expected


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "photos"
    root.mkdir()
    yield root
    if (root / "lost+found").exists():
        (root / "lost+found").chmod(0o755)


def test_every_odd_entry_beside_good_photos_is_one_row_in_one_run(
    tmp_path: Path, odd: Path, model: Path, running_ray: None
) -> None:
    make_archive(odd / "folder.jpg", 12)
    photos = {f"{index}.jpg": photo(index) for index in range(4)}
    whole = make_tar(odd / "cut.tar", {**photos, "cut.jpg": photo(5)}).read_bytes()
    (odd / "cut.tar").write_bytes(whole[: whole.rindex(photo(5)) + 100])
    make_zip(odd / "good.zip", {f"z{name}": data for name, data in list(photos.items())[:3]})
    with zipfile.ZipFile(odd / "good.zip", "a") as shard, pytest.warns(UserWarning, match="Duplicate name"):
        shard.writestr("z2.jpg", photo(9))  # a name twice: the last one counts
    expected = {"cut.jpg": "read: the shard ends before the member does", "cut.tar": "read: not a readable tar ("}
    expected |= make_odd(odd, tmp_path)
    (odd / "more.jpg").write_bytes(photo(20))
    options = SegmentOptions(archive=str(odd), results=str(tmp_path / "r"), model=str(model), crf=False, scales=(1.0,))

    with pytest.raises(TooManyErrors, match=f"{len(expected)} of {20 + len(expected)} images"):  # exit code 3
        segment(options)
    table = ResultsTable.open(options.results)
    rows = table.query("SELECT uri, status, error FROM results").fetchall()
    found = {unquote(uri).split("#")[-1].rsplit("/", 1)[-1]: error for uri, state, error in rows if state == "error"}
    assert set(found) == set(expected)
    assert all(found[name].startswith(expected[name]) for name in expected), found
    assert len(rows) == len({uri for uri, _, _ in rows}) == 20 + len(expected)

    (odd / "sector.jpg").unlink()  # the state of what it leads to is another in every process
    assert segment(options).images == 0
    verdict = verification.verify(table, options.archive)
    assert (verdict.problems, verdict.pending) == ([], 0)
    assert status(table, options.archive)["archive"]["pending"] == 0

    for name in ("pipe.jpg", "text.zip", "cut.tar"):
        (odd / name).unlink()
    (odd / "pipe.jpg").write_bytes(photo(30))
    make_zip(odd / "text.zip", {"new.jpg": photo(31)})
    (odd / "cut.tar").write_bytes(whole)
    again = segment(options.model_copy(update={"retry_errors": True, "max_error_rate": 1.0}))
    mended = {"pipe.jpg", "text.zip", "cut.jpg", "cut.tar", "sector.jpg"}
    assert again.errors == len(set(expected) - mended)
    table.refresh()
    good = table.query("SELECT count(DISTINCT uri) FROM results WHERE status = 'ok'").fetchone()
    assert good == (20 + len({"pipe.jpg", "new.jpg", "cut.jpg"}),)


def test_what_is_excluded_is_not_opened_and_a_folder_by_its_name_or_what_is_in_it(
    tmp_path: Path, odd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (odd / "good.jpg").write_bytes(photo(1))
    (odd / "broken.zip").write_text("no zip")
    make_deep(odd / "deep")
    assert set(reasons(odd, tmp_path)) == {"good.jpg", "broken.zip", "d" * 250}
    opened: list[str] = []
    monkeypatch.setattr(shards, "members", lambda shard, version: opened.append(shard) or iter(()))
    assert set(reasons(odd, tmp_path, exclude=("*.zip", "deep/*"))) == {"good.jpg"}
    assert opened == []


def test_a_line_of_a_list_that_no_file_system_takes_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(photo(1))
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "list.txt").write_text(f"good.jpg\nfolder.jpg\n{'x' * 300}.jpg\n{'y/' * 3000}z.jpg\n")
    assert reasons(tmp_path / "list.txt", tmp_path) == {
        "good.jpg": None,
        "folder.jpg": "read: it is a folder, not a file",
        f"{'x' * 300}.jpg": "read: File name too long",
        "z.jpg": "read: File name too long",
    }
    assert read("file:///a%00b.jpg", "v")[2] == "read: embedded null byte"


def test_an_archive_of_nothing_that_can_be_read_is_refused_with_the_first_reason(tmp_path: Path, odd: Path) -> None:
    (odd / "broken.zip").write_text("no zip")
    with pytest.raises(ArchiveError, match=r"no images found; .*broken\.zip: read: not a readable zip"):
        inventory.take(str(odd), tmp_path / "inventory.parquet")


@pytest.mark.parametrize("place", ["middle", "cut", "backwards"])
def test_members_before_the_damage_of_a_tar_are_kept(place: str, tmp_path: Path) -> None:
    path = make_tar(tmp_path / "shard.tar", {f"{index}.jpg": photo(index) for index in range(6)})
    data = bytearray(path.read_bytes())
    third = data.index(b"3.jpg\0")
    if place == "middle":  # tarfile itself takes it for the end
        data[third : third + 512] = os.urandom(512)
    elif place == "backwards":  # a size below zero leads back to where it was
        info = tarfile.TarInfo("3.jpg")
        info.size = -1536
        data[third : third + 512] = info.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(data[: third + 300] if place == "cut" else data)
    found = reasons(path, tmp_path)
    assert [name.split("#")[-1] for name, reason in found.items() if reason is None] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [name for name, reason in found.items() if reason is not None] == ["shard.tar"]
    assert found["shard.tar"].startswith("read: not a readable tar (")  # type: ignore[union-attr]


# Deadlines, and whose fault an error is.


class System:
    """`os` as pipelines.storage.local_files alone sees it, with some calls replaced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **calls: object) -> None:
        self.__dict__.update(calls)
        monkeypatch.setattr(local_files, "os", self)

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)


def stuck(call: Callable[..., object], path: Path, free: threading.Event) -> Callable[..., object]:
    """A system call that does not return for a path until `free` is set."""
    return lambda first, *rest: (free.wait() if str(first) == str(path) else None, call(first, *rest))[1]


def test_a_file_that_gives_no_byte_is_a_row_and_a_folder_that_does_not_answer_an_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [path.as_uri() for path in sorted(make_archive(tmp_path / "photos", 40).rglob("*.jpg"))]
    path, free = filesystems.local_path(images[3]), threading.Event()
    monkeypatch.setattr(local_files, "READ_SECONDS", 1.0)
    system = System(monkeypatch, stat=stuck(os.stat, path, free))
    windows = list(read_ahead.Loader(10**6).windows([(uri, "v", 1) for uri in images]))
    assert {image.uri: image.error for window in windows for image in window} == {
        uri: "read: no answer for 1 s" if uri == images[3] else None for uri in images
    }
    system.statvfs = stuck(os.statvfs, path.parent, free)
    monkeypatch.setattr(filesystems, "OUTAGE_SECONDS", -1.0)
    with pytest.raises(filesystems.StorageError, match="photos/a: no answer for 1 s; is the disk or mount gone"):
        read(images[3], "v")
    free.set()
    assert read(images[3], "v")[2] is None


def test_a_read_that_goes_on_slowly_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "slow.jpg"
    path.write_bytes(photo(1))
    pause = threading.Event()
    monkeypatch.setattr(local_files, "READ_SECONDS", 0.5)
    monkeypatch.setattr(local_files, "PIECE", 1 + path.stat().st_size // 8)
    System(monkeypatch, pread=lambda *arguments: (pause.wait(0.1), os.pread(*arguments))[1])
    assert local_files.read(path)[0] == photo(1)  # nine pieces
    assert local_files.read(path, 10, 20)[0] == photo(1)[10:30]


def test_an_entry_that_is_stuck_while_its_folder_is_listed_does_not_hide_those_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(9):
        (tmp_path / f"{index}.jpg").write_bytes(photo(1))
    free, entry = threading.Event(), local_files._entry
    monkeypatch.setattr(local_files, "READ_SECONDS", 0.3)
    monkeypatch.setattr(local_files, "BATCH", 4)
    monkeypatch.setattr(local_files, "_entry", lambda item: (free.wait() if item.name in ("3.jpg", "4.jpg") else 0, entry(item))[1])
    found = {item.name: item.state is not None for item in local_files.entries(local_files.names(tmp_path))}
    free.set()
    assert found == {f"{index}.jpg": index not in (3, 4) for index in range(9)}


def test_a_thread_that_is_stuck_does_not_hold_up_the_end_of_the_process() -> None:
    script = """
import threading
from pipelines.storage import deadline
try:
    deadline.within(0.2, lambda beat: threading.Event().wait())
except deadline.NoAnswer:
    print(deadline.within(5, lambda beat: "others go on"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "others go on\n"


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_any_error_of_a_file_is_its_own_or_the_systems(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(photo(1))

    def fails(*arguments: object) -> object:
        raise OSError(number, os.strerror(number))

    system = System(monkeypatch, open=fails)
    with pytest.raises((*storage_errors.OWN, filesystems.StorageError)) as caught:
        filesystems.read_versioned(path.as_uri())
    assert isinstance(caught.value, filesystems.StorageError) == (number in storage_errors.SYSTEM)
    system.statvfs = fails
    with pytest.raises((*storage_errors.OWN, filesystems.StorageError)) as caught:
        filesystems.read_versioned(path.as_uri())
    # Where the folder does not answer, either, only what a file system says of a name is its own.
    named = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
    assert isinstance(caught.value, filesystems.StorageError) == (number not in named)


def test_a_process_without_descriptors_left_fails_the_run_and_blames_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(photo(1))
    local_files.read(path)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = os.open("/dev/null", os.O_RDONLY)
    os.close(top)
    resource.setrlimit(resource.RLIMIT_NOFILE, (top, before[1]))
    try:
        with pytest.raises(filesystems.StorageError, match="Too many open files"):
            local_files.read(path)
        with pytest.raises(filesystems.StorageError, match="Too many open files"):
            local_files.names(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_decoder_that_fails_in_an_unforeseen_way_costs_its_image_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [(path.as_uri(), "v", 1) for path in sorted(make_archive(tmp_path / "photos", 3).rglob("*.jpg"))]
    decode, calls = read_ahead.decode, []

    def second_fails(*arguments: bytes) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise RecursionError("too\ndeep")
        return decode(*arguments)

    monkeypatch.setattr(read_ahead, "decode", second_fails)
    (window,) = read_ahead.Loader(10**6).windows(images)
    assert sorted(str(image.error) for image in window) == ["None", "None", "decode: RecursionError: too deep"]


# S3


def client_error(code: str, status: int, message: str = "") -> ClientError:
    answer = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "GetObject")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "own"),
    [
        (client_error("NoSuchKey", 404), True),
        (client_error("AccessDenied", 403), True),
        (client_error("InvalidObjectState", 403), True),
        (client_error("InvalidRange", 416), True),
        (client_error("KeyTooLongError", 400), True),
        (client_error("KMS.DisabledException", 400), True),
        (client_error("InvalidRequest", 400, "The object was stored using a form of Server Side Encryption."), True),
        (ParamValidationError(report="Invalid bucket name"), True),
        (client_error("NoSuchBucket", 404), False),
        (client_error("InvalidAccessKeyId", 403), False),
        (client_error("SignatureDoesNotMatch", 403), False),
        (client_error("ExpiredToken", 400), False),
        (client_error("InvalidRequest", 400, "Please use AWS4-HMAC-SHA256"), False),
        (client_error("SlowDown", 503), False),
        (client_error("InternalError", 500), False),
    ],
)
def test_an_answer_about_one_object_is_its_own_and_one_about_the_store_is_not(error: Exception, own: bool) -> None:
    judged = s3_errors.as_os_error(error, "s3://b/x.jpg", None)
    assert (isinstance(judged, storage_errors.OWN), isinstance(judged, filesystems.StorageError)) == (own, not own)


def test_shards_and_names_on_s3_that_do_not_read_are_rows_beside_good_photos(s3: str, tmp_path: Path) -> None:
    from pipelines.storage import s3 as store

    whole = make_tar(tmp_path / "x.tar", {f"{index}.jpg": photo(index) for index in range(3)}).read_bytes()
    store.put(f"{s3}/photos/good.jpg", photo(1))
    store.put(f"{s3}/photos/cut.tar", whole[: whole.rindex(photo(2)) + 10])
    store.put(f"{s3}/photos/shrinks.tar", whole)
    for name in ("text.zip", "text.parquet"):
        store.put(f"{s3}/photos/{name}", b"neither")
    found = inventory.take(f"{s3}/photos", tmp_path / "inventory.parquet")
    rows = pq.read_table(found.path).to_pylist()
    store.put(f"{s3}/photos/shrinks.tar", whole[:700])
    why = {row["uri"].rsplit("/", 1)[-1]: read(row["uri"], row["version"])[2] for row in rows}
    assert {name for name, reason in why.items() if reason is None} == {"good.jpg", "cut.tar#0.jpg", "cut.tar#1.jpg"}
    assert why["text.zip"] == "read: not a readable zip (File is not a zip file); uncompressed tar and zip are accepted"
    assert why["cut.tar"].startswith("read: not a readable tar (")
    assert why["cut.tar#2.jpg"] == "read: the shard ends before the member does"
    assert why["shrinks.tar#0.jpg"] == "read: the shard changed after it was listed; the next run lists it again"
    assert why["shrinks.tar#2.jpg"] == "read: the object ends before the requested range"
    for uri, reason in {
        f"{s3}/{'k' * 1100}.jpg": "the key has",
        "s3:///x.jpg": "s3://bucket/key is accepted",
        "s3://a bucket/x.jpg": "not a name that S3 accepts (",
        f"{s3}/caf\udce9.jpg": "the key is not UTF-8",
    }.items():
        assert filesystems.stat_all([uri]) == [None]
        assert read(uri, "v")[2].startswith(f"read: {reason}")  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["shard.zip", "shard.tar", "shard.parquet"])
def test_a_store_that_is_away_while_a_shard_is_opened_ends_the_run(
    name: str, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zipfile would call it damage."""
    from pipelines.storage import s3 as store

    if name.endswith("parquet"):
        pq.write_table(pa.table({"image": [photo(1)]}), tmp_path / name)
    else:
        (make_zip if name.endswith("zip") else make_tar)(tmp_path / name, {"a.jpg": photo(1)})
    store.put(f"{s3}/photos/good.jpg", photo(1))
    store.put(f"{s3}/photos/{name}", (tmp_path / name).read_bytes())
    found = inventory.take(f"{s3}/photos", tmp_path / "inventory.parquet")
    assert found.images == 2

    def away(uri: str, *arguments: int) -> object:
        raise filesystems.StorageError(f"{uri}: cannot be reached")

    monkeypatch.setattr(filesystems, "OUTAGE_SECONDS", -1.0)
    monkeypatch.setattr(store, "get_range", away)
    with pytest.raises(filesystems.StorageError, match=rf"{name}: cannot be reached"):
        inventory.take(f"{s3}/photos", tmp_path / "inventory.parquet")
