"""The only place that turns a URI into a file system: local paths, file:// and s3:// (also S3-compatible stores)."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote_to_bytes, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from deeplab.errors import UserError
from deeplab.files import Files, LocalFiles
from deeplab.safe_names import leads_outside
from pipelines.storage import local_files, s3
from pipelines.storage.storage_errors import OWN, StorageError

__all__ = ["FileStat", "StorageError"]

OUTAGE_SECONDS = 1800.0
DISK_SECONDS = 10.0
T = TypeVar("T")


@dataclass(frozen=True)
class FileStat:
    """`version` names the bytes: the ETag, or size and modification time in nanoseconds."""

    size: int
    version: str


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def local_path(uri: str) -> Path:
    """The path behind a local URI or plain path. StorageError for a scheme that is not local."""
    if uri.startswith("file://"):
        return Path(os.fsdecode(unquote_to_bytes(urlsplit(uri).path)))  # names need not be UTF-8
    if "://" in uri:
        raise StorageError(f"{uri}: unknown scheme; local paths, file:// and s3:// are accepted")
    return Path(uri)


def canonical(uri: str) -> str:
    """One spelling for one place: s3://bucket/key as it is, everything local as file:///absolute/path."""
    return uri.rstrip("/") if is_s3(uri) else Path(os.path.abspath(local_path(uri).expanduser())).as_uri()


def below(uri: str, name: str) -> str:
    """The URI of a file below a canonical one; `name`: its relative path, not encoded."""
    if leads_outside(name):
        raise StorageError(f"{uri}: {name!r} leads outside")
    return f"{uri}/{name if is_s3(uri) else quote(os.fsencode(name))}"


def last_part(uri: str) -> str:
    """What people call a place: the last part of its path, not encoded."""
    whole = canonical(uri)
    return whole.rsplit("/", 1)[-1] if is_s3(whole) else local_path(whole).name


@lru_cache(maxsize=1)
def _s3_filesystem() -> pafs.FileSystem:
    """For readers that need a file system (Parquet inventories); images and results go through pipelines.storage.s3."""
    scheme, _, host = (s3.endpoint() or "").rpartition("://")
    return pafs.S3FileSystem(
        endpoint_override=host or None,
        scheme=scheme or "https",
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        anonymous=not s3.signed(),
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=s3.TRIES),
        connect_timeout=5,
        request_timeout=30,
    )


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI and the path in it."""
    if is_s3(uri):
        return _s3_filesystem(), uri.removeprefix("s3://").rstrip("/")
    return pafs.LocalFileSystem(), str(local_path(uri))


def delta_options(uri: str, patient: bool = False) -> dict[str, str]:
    """Options of the Delta library for a table at `uri`: commits on S3 by conditional PUT; credentials from AWS_*.

    By default the library tries ten times, which takes 2 to 5 seconds with a store that refuses connections. `patient`: it waits
    for a store as long as `outlast`.
    """
    if not is_s3(uri):
        return {}
    options = {"aws_conditional_put": "etag"}
    if patient:
        options |= {"max_retries": "1000", "retry_timeout": f"{OUTAGE_SECONDS:.0f}s"}
    if endpoint := s3.endpoint():
        options |= {"aws_endpoint": endpoint, "aws_allow_http": str(endpoint.startswith("http://")).lower()}
        if not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
            options["aws_region"] = "us-east-1"
    if not s3.signed():
        options["aws_skip_signature"] = "true"
    return options


def open_file(uri: str) -> pa.NativeFile:
    """One object for random access. Raises OSError."""
    if not is_s3(uri):
        return pa.OSFile(os.fsencode(local_path(uri)))  # Arrow's file systems take no paths that are not UTF-8
    system, path = filesystem(uri)
    return system.open_input_file(path)


# What the Delta library does not support in a table's path: it decodes %41, treats a backslash as a slash, and panics at the rest.
DELTA_UNABLE = re.compile(r"%[0-9A-Fa-f]{2}|[\\\x00-\x1f\x7f\udc80-\udcff]")
DELTA_UNABLE_LOCAL = re.compile(r"[\[\]^|]")


def delta_location(uri: str) -> str:
    """A place as the Delta library names it. StorageError for a place that the library would mistake for another."""
    place = uri if is_s3(uri) else os.path.realpath(local_path(uri))
    unable = DELTA_UNABLE.search(place) or (None if is_s3(uri) else DELTA_UNABLE_LOCAL.search(place))
    if unable is not None:
        raise StorageError(
            f"{place!r}: a results table cannot lie there, as the Delta library does not support {unable[0]!r} in its path; "
            "choose a place without % before two digits, \\, [, ], ^, | and control characters"
        )
    if not is_s3(uri):
        return str(local_path(uri))
    bucket, key = s3.split(uri)
    return f"s3://{bucket}/{quote(key)}"


def read_versioned(uri: str) -> tuple[bytes, str]:
    """All bytes of one object and their version. Raises an error of `storage_errors.OWN` for its own faults, else StorageError."""
    if is_s3(uri):
        return s3.get(uri)
    data, before = local_files.read(local_path(uri))
    return data, local_version(before)


def read_range(uri: str, start: int, length: int) -> tuple[bytes, str]:
    """`length` (at least 1) bytes of an object from `start`, fewer at its end, and its version; errors as `read_versioned`."""
    if is_s3(uri):
        return s3.get_range(uri, start, length)
    data, before = local_files.read(local_path(uri), start, length)
    return data, local_version(before)


def local_version(stat: os.stat_result) -> str:
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def stat(uri: str) -> FileStat:
    """Size and version of one object; errors as `read_versioned`."""
    if is_s3(uri):
        answer = s3.head(uri)
        if answer is None:
            raise FileNotFoundError(errno.ENOENT, "No such object", uri)
        return FileStat(*answer)
    state = local_files.stat(local_path(uri))
    return FileStat(state.st_size, local_version(state))


def stat_all(uris: list[str]) -> list[FileStat | None]:
    """Size and version of many objects; None if one does not exist, is not a file or is not accessible. Raises StorageError."""
    with ThreadPoolExecutor(s3.LIST_THREADS) as pool:
        return list(pool.map(_stat, uris))


def _stat(uri: str) -> FileStat | None:
    try:
        return stat(uri)
    except OWN:
        return None


def size(uri: str) -> int | None:
    """Bytes of one object; None if there is none."""
    stat = _stat(uri)
    return stat.size if stat else None


def outlast(action: Callable[[], T]) -> T:
    """The result of `action`, retried while a store is down, for OUTAGE_SECONDS, and after other I/O errors, for DISK_SECONDS.

    An error that does not pass (`passes`) is raised at once. The store's client also retries, but its threads share a small budget.
    """
    began, pause = time.monotonic(), 0.5
    while True:
        try:
            return action()
        except OSError as error:
            patience = OUTAGE_SECONDS if isinstance(error, StorageError) else DISK_SECONDS
            if not passes(error) or time.monotonic() - began > patience:
                raise
            time.sleep(pause)
            pause = min(8.0, 2 * pause)


def passes(error: BaseException | None) -> bool:
    """Whether the same call may succeed a little later. Our errors say so themselves or by their cause; other I/O errors pass.

    Faults of an object (`storage_errors.OWN`), a refusal by a store and a full disk do not pass.
    """
    if isinstance(error, UserError):
        return error.passing or (
            error.__cause__ is not error and isinstance(error.__cause__, UserError) and passes(error.__cause__)
        )
    if isinstance(error, OWN):
        return False
    return isinstance(error, OSError) and error.errno != errno.ENOSPC


def write_whole(uri: str, data: bytes) -> int:
    """Write one object so that it appears complete or not at all (one PUT, or a temporary file and a rename)."""
    if is_s3(uri):
        s3.put(uri, data)
        return len(data)
    target = local_path(uri)
    LocalFiles(target.parent).write(target.name, data)
    return len(data)


class StoredFiles:
    """The files below an s3:// prefix, as deeplab.files.Files."""

    remote = True

    def __init__(self, uri: str) -> None:
        self.uri = canonical(uri)

    def __str__(self) -> str:
        return self.uri

    def _place(self, name: str) -> tuple[pafs.FileSystem, str]:
        return filesystem(f"{self.uri}/{name}")

    def read(self, name: str) -> bytes:
        system, path = self._place(name)
        with system.open_input_stream(path) as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes) -> None:
        write_whole(f"{self.uri}/{name}", data)

    def remove(self, name: str) -> None:
        system, path = self._place(name)
        with suppress(FileNotFoundError):
            system.delete_file(path)

    def has(self, name: str) -> bool:
        system, path = self._place(name)
        return bool(system.get_file_info(path).type != pafs.FileType.NotFound)

    def names(self, folder: str = "") -> list[str]:
        system, path = self._place(folder)
        infos = system.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
        return sorted(info.path.removeprefix(f"{path}/") for info in infos if info.type == pafs.FileType.File)


def files(place: str | Path) -> Files:
    """The files below a local folder or an s3:// prefix."""
    return StoredFiles(str(place)) if is_s3(str(place)) else LocalFiles(local_path(str(place)))


def read_tagged(uri: str) -> tuple[bytes, str] | None:
    """A small object and the tag of this state of it for `write_if_unchanged`; None if it does not exist."""
    try:
        if is_s3(uri):
            return s3.get(uri)
        data = local_path(uri).read_bytes()
    except FileNotFoundError:
        return None
    return data, hashlib.sha256(data).hexdigest()


def write_if_unchanged(uri: str, data: bytes, tag: str | None) -> bool:
    """Write a small object if it is still in the state `tag` (None: does not exist); False if someone else was faster."""
    if is_s3(uri):
        return s3.put(uri, data, only_new=tag is None, unchanged=tag)
    path = local_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tagged = read_tagged(uri)
        if (tagged[1] if tagged else None) != tag:
            return False
        write_whole(uri, data)
        return True
