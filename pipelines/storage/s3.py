"""S3 and S3-compatible stores: list, read, write, and the conditional PUT on which commits rely.

The standard variables set everything: AWS_ACCESS_KEY_ID and so on (or a profile, or a role), AWS_REGION, and AWS_ENDPOINT_URL for
other stores (then the path names the bucket, and requests carry no checksums of the newer kind unless
AWS_REQUEST_CHECKSUM_CALCULATION asks for them). Without credentials, requests are unsigned, which public buckets accept.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from typing import TypedDict

import boto3
from botocore import UNSIGNED
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from deeplab.files import MARKER
from pipelines.storage.local_files import READ_SECONDS
from pipelines.storage.s3_errors import FAILURES, as_os_error, unusable
from pipelines.storage.storage_errors import EntryError, Outage, StorageError, require_fitting

LIST_THREADS = 16
PAGE = 1000  # keys per response, the most that S3 returns
FOLDERS_AT_ONCE = 10_000  # folder names in memory while they are listed
# With growing random pauses; fewer tries if many threads retry at once. filesystems.outlast retries after that.
TRIES = 8
PROBES = "_probe"
MAX_KEY_BYTES = 1024


class ListedObject(TypedDict):
    """An object in a listing."""

    Key: str
    Size: int
    ETag: str


class Page(TypedDict, total=False):
    """The parts of a ListObjectsV2 response that are used."""

    Contents: list[ListedObject]
    CommonPrefixes: list[dict[str, str]]


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of s3://bucket/key. StorageError without a bucket."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise StorageError(f"{uri}: s3://bucket/key is accepted")
    return bucket, key


def endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


@lru_cache(maxsize=1)
def signed() -> bool:
    """Whether there are credentials to sign with. StorageError if they are incomplete or their profile does not exist."""
    try:
        return boto3.Session().get_credentials() is not None
    except BotoCoreError as error:
        raise StorageError(unusable(error, endpoint())) from error


@lru_cache(maxsize=1)
def client() -> BaseClient:
    """The client of this process (boto3's clients are safe to share between threads)."""
    # Ceph 16.2 answers 411 to the trailing checksums that boto3 sends over TLS by default. Without them the signature covers the
    # body.
    checksums = os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION") or ("when_required" if endpoint() else None)
    config = Config(
        request_checksum_calculation=checksums,
        retries={"mode": "standard", "max_attempts": TRIES},
        connect_timeout=5,
        read_timeout=READ_SECONDS,
        max_pool_connections=2 * LIST_THREADS,
        s3={"addressing_style": "path" if endpoint() else "auto"},
        signature_version=None if signed() else UNSIGNED,
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ("us-east-1" if endpoint() else None)
    return boto3.Session().client("s3", region_name=region, endpoint_url=endpoint(), config=config)


def _as_os_error(error: Exception, uri: str) -> OSError:
    return as_os_error(error, uri, endpoint())


def _kind(error: OSError) -> type[StorageError]:
    return Outage if isinstance(error, Outage) else StorageError


def _object(uri: str) -> tuple[str, str]:
    """Bucket and key of an object to read. EntryError for a URI that cannot name one."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise EntryError(errno.EINVAL, "s3://bucket/key is accepted", uri)
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise EntryError(errno.EILSEQ, "the key is not UTF-8", uri) from error
    if size > MAX_KEY_BYTES:
        raise EntryError(errno.ENAMETOOLONG, f"the key has {size} bytes; up to {MAX_KEY_BYTES} are accepted", uri)
    return bucket, key


def get(uri: str) -> tuple[bytes, str]:
    """All bytes of an object and their ETag. Raises an error of `storage_errors.OWN`, or StorageError."""
    bucket, key = _object(uri)
    try:
        answer = client().get_object(Bucket=bucket, Key=key)
        require_fitting(int(answer["ContentLength"]), uri)
        return answer["Body"].read(), _version(answer["ETag"])
    except FAILURES as error:
        raise _as_os_error(error, uri) from error


def get_range(uri: str, start: int, length: int) -> tuple[bytes, str]:
    """`length` bytes from `start`, and the whole object's ETag; errors as `get`."""
    bucket, key = _object(uri)
    try:
        answer = client().get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{start + length - 1}")
        return answer["Body"].read(), _version(answer["ETag"])
    except FAILURES as error:
        raise _as_os_error(error, uri) from error


def head(uri: str) -> tuple[int, str] | None:
    """Size and ETag of an object, None if there is none; other errors as `get`."""
    bucket, key = _object(uri)
    try:
        answer = client().head_object(Bucket=bucket, Key=key)
    except FAILURES as error:
        reason = _as_os_error(error, uri)
        if isinstance(reason, FileNotFoundError):
            return None
        raise reason from error
    return int(answer["ContentLength"]), _version(answer["ETag"])


def put(uri: str, data: bytes, *, only_new: bool = False, unchanged: str | None = None) -> bool:
    """Write an object in one request, so that it appears whole or not at all.

    `only_new`: only if there is none yet (If-None-Match); `unchanged`: only over the object with this ETag (If-Match). Returns
    False if that does not hold. A request that is repeated because its answer was lost finds its own object, which counts as
    written. StorageError if the store cannot replace under a condition.
    """
    bucket, key = split(uri)
    conditions: list[dict[str, str]] = [{"IfNoneMatch": "*"}] if only_new else [{}]
    if unchanged is not None:  # Ceph 16.2 accepts an ETag only without its quotes
        conditions = [{"IfMatch": f'"{unchanged}"'}, {"IfMatch": unchanged}]
    for condition in conditions:
        try:
            client().put_object(Bucket=bucket, Key=key, Body=data, **condition)
            return True
        except FAILURES as error:
            if not (condition and _does_not_hold(error, unchanged is not None)):
                raise _as_os_error(error, uri) from error
        try:
            stored, tag = get(uri)
        except FileNotFoundError:
            return False
        if stored == data or tag != unchanged:
            return stored == data
    raise StorageError(f"{uri}: this store refuses to replace an object that nobody changed; it does not support If-Match")


def _does_not_hold(error: Exception, must_exist: bool) -> bool:
    """Whether an error means that the condition of a write does not hold."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(error, ClientError) else None
    return status in (409, 412) or (status == 404 and must_exist)


def delete(uri: str) -> None:
    """Remove an object; it is no error if it does not exist."""
    bucket, key = split(uri)
    try:
        client().delete_object(Bucket=bucket, Key=key)
    except FAILURES as error:
        raise _as_os_error(error, uri) from error


def require_conditional_put(prefix: str, replacing: bool = False) -> None:
    """Write a probe below `prefix` and remove it. StorageError unless the store refuses to overwrite it under a condition.

    Otherwise two runs that commit at once could overwrite each other's commit. `replacing`: also require that it refuses to
    replace an object that has changed, as moves of aliases need.
    """
    uri = f"{prefix.rstrip('/')}/{PROBES}/{uuid.uuid4().hex}"
    lacking = None
    try:
        put(uri, b"first", only_new=True)
        if put(uri, b"second", only_new=True):
            lacking = "If-None-Match"
        elif replacing and (put(uri, b"third", unchanged="0" * 32) or not put(uri, b"fourth", unchanged=get(uri)[1])):
            lacking = "If-Match"
    except OSError as error:
        raise _kind(error)(f"{prefix}: cannot be written ({error.strerror or error})") from error
    with suppress(PermissionError):  # without the right to delete, the probe stays; nothing else here deletes
        delete(uri)
    if lacking:
        raise StorageError(
            f"{prefix}: this store ignores conditional PUT ({lacking}), so commits of other runs could be lost; "
            "AWS S3, Cloudflare R2, MinIO, SeaweedFS and Ceph 16.2 or later support it"
        )


def is_free(prefix: str) -> bool:
    """Whether a prefix holds nothing but probes (another run may be writing one just now)."""
    root = f"{prefix.rstrip('/')}/{PROBES}/"
    return all(uri.startswith(root) for uri, _, _ in list_objects(prefix))


def list_objects(prefix: str, output: Callable[[str], None] | None = None) -> Iterator[tuple[str, int, str]]:
    """(URI, size, ETag) of every object below a prefix, in any order, page by page: memory does not grow.

    LIST_THREADS threads list folders in parallel. Names that begin with a dot and folder markers are left out. With `output`, so
    are folders below the prefix that this program wrote (`deeplab.files.mark_output`), and `output` gets their URIs.
    """
    bucket, key = split(prefix)
    root = f"{key.rstrip('/')}/" if key else ""
    try:
        folders = [root]
        for _ in range(4):  # descend until there is work for all threads
            if len(folders) >= LIST_THREADS:
                break
            below: list[str] = []
            for folder in folders:
                for page in _pages(bucket, folder, "/", root, output):
                    yield from _objects(bucket, page, root)
                    names = [entry["Prefix"] for entry in page.get("CommonPrefixes", ())]
                    below += [name for name in names if not hidden(name[len(root) :])]
                    if len(below) >= FOLDERS_AT_ONCE:
                        yield from _in_parallel(bucket, below, root, output)
                        below = []
            folders = below
        if folders:
            yield from _in_parallel(bucket, folders, root, output)
    except FAILURES as error:
        reason = _as_os_error(error, prefix)
        raise _kind(reason)(f"{prefix}: cannot be listed ({_reason(reason)})") from error


def _in_parallel(
    bucket: str, folders: list[str], root: str, output: Callable[[str], None] | None
) -> Iterator[tuple[str, int, str]]:
    pages: queue.Queue[list[tuple[str, int, str]] | Exception | None] = queue.Queue(maxsize=4 * LIST_THREADS)
    stop = threading.Event()

    def put_page(item: list[tuple[str, int, str]] | Exception | None) -> None:
        while not stop.is_set():
            try:
                return pages.put(item, timeout=0.2)
            except queue.Full:
                continue

    def walk(folder: str) -> None:
        try:
            if not stop.is_set():
                for page in _pages(bucket, folder, "", root, output):
                    put_page(_objects(bucket, page, root))
                    if stop.is_set():
                        return
            put_page(None)
        except Exception as error:
            put_page(error)

    pool = ThreadPoolExecutor(LIST_THREADS)
    try:
        for folder in folders:
            pool.submit(walk, folder)
        left = len(folders)
        while left:
            item = pages.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield from item
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _pages(bucket: str, folder: str, delimiter: str, root: str, output: Callable[[str], None] | None) -> Iterator[Page]:
    """The pages of a listing. With `output`, they leave out folders below `root` that hold the marker of an output."""
    ours = None
    paginator = client().get_paginator("list_objects_v2")
    for page in paginator.paginate(Bucket=bucket, Prefix=folder, Delimiter=delimiter, PaginationConfig={"PageSize": PAGE}):
        if output is None:
            yield page
            continue
        kept: list[ListedObject] = []
        for entry in page.get("Contents", ()):
            key = entry["Key"]
            # Keys are sorted, and the marker sorts before all other keys that this program writes.
            if key.rpartition("/")[2] == MARKER and key != root + MARKER and not (ours and key.startswith(ours)):
                ours = key.removesuffix(MARKER)
                output(f"s3://{bucket}/{ours}")
            if not (ours and key.startswith(ours)):
                kept.append(entry)
        if ours == folder:
            yield {"Contents": kept}
            return
        yield {"CommonPrefixes": page.get("CommonPrefixes", []), "Contents": kept}


def _objects(bucket: str, page: Page, root: str) -> list[tuple[str, int, str]]:
    return [
        (f"s3://{bucket}/{entry['Key']}", int(entry["Size"]), _version(entry["ETag"]))
        for entry in page.get("Contents", ())
        if not entry["Key"].endswith("/") and not hidden(entry["Key"][len(root) :])
    ]


def hidden(path: str) -> bool:
    """Whether a part of the path begins with a dot."""
    return any(part.startswith(".") for part in path.split("/"))


def _version(etag: str) -> str:
    return etag.strip('"')


def _reason(error: OSError) -> str:
    return str(error.strerror or error)
