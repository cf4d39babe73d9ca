"""The one place that turns a URI into a file system: local paths, file:// and s3:// (and S3-compatible stores)."""

from __future__ import annotations

import fcntl
import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow.fs as pafs

from deeplab.errors import UserError


class StorageError(UserError, OSError):
    """A place cannot be reached, read or written; the message names it and what is accepted."""


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
        return Path(unquote(urlsplit(uri).path))
    if "://" in uri:
        raise StorageError(f"{uri}: unknown scheme; local paths, file:// and s3:// are accepted")
    return Path(uri)


def canonical(uri: str) -> str:
    """One spelling for one place: s3://bucket/key as it is, everything local as file:///absolute/path."""
    return uri.rstrip("/") if is_s3(uri) else Path(os.path.abspath(local_path(uri).expanduser())).as_uri()


@lru_cache(maxsize=4)
def _s3() -> pafs.FileSystem:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    scheme, _, host = endpoint.rpartition("://") if endpoint else ("https", "", "")
    return pafs.S3FileSystem(
        endpoint_override=host or None,
        scheme=scheme or "https",
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        allow_delayed_open=True,  # one PUT for a small file instead of three requests
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=8),
        connect_timeout=5,
        request_timeout=30,
    )


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI and the path in it."""
    if is_s3(uri):
        return _s3(), uri.removeprefix("s3://").rstrip("/")
    return pafs.LocalFileSystem(), str(local_path(uri))


def delta_options(uri: str) -> dict[str, str]:
    """Options of the Delta library for a table at `uri`: commits on S3 by conditional PUT; credentials from AWS_*."""
    if not is_s3(uri):
        return {}
    options = {"aws_conditional_put": "etag"}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        options |= {"aws_endpoint": endpoint, "aws_allow_http": str(endpoint.startswith("http://")).lower()}
    return options


def delta_location(uri: str) -> str:
    """How the Delta library wants a place named."""
    return uri if is_s3(uri) else str(local_path(uri))


def read_versioned(uri: str) -> tuple[bytes, str]:
    """All bytes of one object and their version. FileNotFoundError, PermissionError and other OSError as they come."""
    if is_s3(uri):
        system, path = filesystem(uri)
        stat = _stat_of(system.get_file_info(path))
        if stat is None:
            raise FileNotFoundError(2, "No such object", uri)
        with system.open_input_stream(path) as stream:
            return stream.read(), stat.version
    with open(local_path(uri), "rb") as stream:
        before = os.fstat(stream.fileno())
        return stream.read(), local_version(before)


def local_version(stat: os.stat_result) -> str:
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def stat_all(uris: list[str]) -> list[FileStat | None]:
    """Size and version of many objects, None for those that do not exist."""
    results: list[FileStat | None] = []
    for uri in uris:
        if is_s3(uri):
            system, path = filesystem(uri)
            results.append(_stat_of(system.get_file_info(path)))
            continue
        try:
            stat = os.stat(local_path(uri))
            results.append(FileStat(stat.st_size, local_version(stat)))
        except OSError:
            results.append(None)
    return results


def _stat_of(info: pafs.FileInfo) -> FileStat | None:
    if info.type != pafs.FileType.File:
        return None
    return FileStat(info.size, f"{info.size}-{info.mtime_ns}")


def list_s3(prefix: str) -> list[tuple[str, FileStat]]:
    """Every object below an s3:// prefix as (URI, stat)."""
    system, path = filesystem(prefix)
    try:
        infos = system.get_file_info(pafs.FileSelector(path, recursive=True))
    except OSError as error:
        raise StorageError(f"{prefix}: cannot be listed ({error})") from error
    return [(f"s3://{info.path}", stat) for info in infos if (stat := _stat_of(info)) is not None]


def write_whole(uri: str, data: bytes) -> int:
    """Write one object so that it appears complete or not at all (one PUT, or a second name and a rename)."""
    if is_s3(uri):
        system, path = filesystem(uri)
        with system.open_output_stream(path) as upload:
            upload.write(data)
        return len(data)
    target = local_path(uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(staging, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(staging, target)
    finally:
        staging.unlink(missing_ok=True)
    return len(data)


def _boto() -> Any:
    """The client for conditional requests, which pyarrow has none of."""
    import boto3
    from botocore.config import Config

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config = Config(connect_timeout=5, read_timeout=30, retries={"max_attempts": 8, "mode": "standard"})
    return boto3.client("s3", endpoint_url=endpoint, config=config)


def read_tagged(uri: str) -> tuple[bytes, str] | None:
    """A small object and the tag that names this state of it for `write_if_unchanged`; None when it is not there."""
    if not is_s3(uri):
        try:
            data = local_path(uri).read_bytes()
        except FileNotFoundError:
            return None
        return data, hashlib.sha256(data).hexdigest()
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        answer = _boto().get_object(Bucket=bucket, Key=key)
        return answer["Body"].read(), answer["ETag"]
    except ClientError as error:
        if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
            return None
        raise StorageError(f"{uri}: cannot be read ({error})") from error
    except BotoCoreError as error:
        raise StorageError(f"{uri}: cannot be read ({error})") from error


def write_if_unchanged(uri: str, data: bytes, tag: str | None) -> bool:
    """Write a small object if it still is what `tag` names (None: not there); False when someone else was faster."""
    if not is_s3(uri):
        path = local_path(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_name(f".{path.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = read_tagged(uri)
            if (found[1] if found else None) != tag:
                return False
            write_whole(uri, data)
            return True
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
    try:
        _boto().put_object(Bucket=bucket, Key=key, Body=data, **condition)
        return True
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (404, 409, 412):
            raise StorageError(f"{uri}: cannot be written ({error})") from error
    except BotoCoreError as error:
        raise StorageError(f"{uri}: cannot be written ({error})") from error
    # The answer to our own first try may have been lost, and the second one refused.
    found = read_tagged(uri)
    return found is not None and found[0] == data
