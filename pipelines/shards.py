"""Images inside tar and zip shards (WebDataset and the like), addressed as `shard.tar#member` and read by offset.

A member's version is `SHARD-VERSION@OFFSET+LENGTH`: what a reader needs to fetch just its bytes, and to see that the
shard is still the one that was listed. Nothing is ever unpacked to disk. Parquet files with image bytes are shards, too
(`parquet_shards.py`): the two numbers are then row group and row.
"""

from __future__ import annotations

import io
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, cast
from urllib.parse import quote, unquote_to_bytes

from deeplab.names import leads_outside
from pipelines import parquet_shards, s3, storage

SUFFIXES = (".tar", ".zip", parquet_shards.SUFFIX)
# No photo is larger; what claims to be is a bomb.
MAX_MEMBER_BYTES = 1 << 30
BYTES = re.compile("[\udc80-\udcff]")  # how Python holds the bytes of names that are no UTF-8
ZIP_LOCAL_HEADER = struct.Struct("<4sHHHHHLLLHH")


class ShardError(storage.StorageError):
    """A shard cannot be listed: damaged, compressed as a whole, or not what its name says."""


class MemberError(PermissionError):
    """A member is refused or is no longer what was listed; `strerror` is the reason for its row."""

    def __init__(self, reason: str, uri: str) -> None:
        super().__init__(13, reason, uri)


def is_shard(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def split(uri: str) -> tuple[str, str] | None:
    """Shard and member of a member's URI, None for any other."""
    shard, mark, member = uri.partition("#")
    if not mark or not is_shard(shard):
        return None
    return shard, member if storage.is_s3(uri) else os.fsdecode(unquote_to_bytes(member))


def join(shard: str, member: str) -> str:
    """The URI of a member. Bytes of its name that are no UTF-8 are percent-encoded on S3, too, where nothing else is."""
    if not storage.is_s3(shard):
        return f"{shard}#{quote(os.fsencode(member))}"
    return f"{shard}#{BYTES.sub(lambda byte: f'%{ord(byte[0]) - 0xDC00:02X}', member)}"


def members(shard: str, version: str) -> Iterator[tuple[str, str, int, str]]:
    """(name, URI, bytes, version) of everything in a shard that is not a folder, in its order. ShardError if it is damaged.

    Only the directory of a zip or Parquet file is read; a tar has none, so its headers are visited one by one.
    """
    if shard.lower().endswith(parquet_shards.SUFFIX):
        for name, size, of in parquet_shards.members(shard, version):
            yield name, join(shard, name), size, of
        return
    try:
        with _open(shard) as stream:
            listing = _zip_members(stream) if shard.lower().endswith(".zip") else _tar_members(stream)
            for name, offset, length, size in listing:
                yield name, join(shard, name), size, f"{version}@{offset}+{length}"
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        raise ShardError(
            f"{shard}: not a readable {shard[-3:].lower()} ({error}); uncompressed tar and zip are accepted"
        ) from error


def _open(shard: str) -> io.BufferedIOBase:
    return cast(io.BufferedIOBase, io.BufferedReader(cast(Any, storage.open_file(shard)), 1 << 20))


def _tar_members(stream: io.BufferedIOBase) -> Iterator[tuple[str, int, int, int]]:
    """A link or a device has offset and length -1: it becomes a row with a reason, and is never followed."""
    with tarfile.open(fileobj=stream, mode="r:") as shard:
        while (member := shard.next()) is not None:
            cast(Any, shard).members.clear()  # tarfile keeps all it has seen
            if member.isfile() and member.sparse is None:
                yield member.name, member.offset_data, member.size, member.size
            elif not member.isdir():
                yield member.name, -1, -1, 0


def _zip_members(stream: io.BufferedIOBase) -> Iterator[tuple[str, int, int, int]]:
    with zipfile.ZipFile(stream) as shard:
        for member in shard.infolist():
            if not member.is_dir():
                yield member.filename, member.header_offset, member.compress_size, member.file_size


def fetch(uri: str, expected: str) -> tuple[bytes, str]:
    """All bytes of an image, alone or in a shard, and the version of these bytes; errors as they come (`read`, storage)."""
    return read(uri, expected) if split(uri) else storage.read_versioned(uri)


def read(uri: str, expected: str) -> tuple[bytes, str]:
    """All bytes of a member and its version. MemberError (a reason, not an outage) where it is refused or has changed."""
    parts = split(uri)
    assert parts is not None
    shard, member = parts
    listed, mark, place = expected.rpartition("@")
    start, plus, span = place.partition("+")
    if not (mark and plus):
        raise MemberError(f"a member needs the version SHARD@OFFSET+LENGTH, not {expected!r}; list the shard itself", uri)
    offset, length = int(start), int(span)
    if leads_outside(member):
        raise MemberError("the member's name points out of its shard", uri)
    if shard.lower().endswith(parquet_shards.SUFFIX):
        try:
            return parquet_shards.read(shard, listed, offset, length), expected
        except ValueError as reason:
            raise MemberError(str(reason), uri) from reason
    if offset < 0:
        raise MemberError("a link or device inside a shard is not followed", uri)
    if length > MAX_MEMBER_BYTES:
        raise MemberError(f"the member has {length} bytes; up to {MAX_MEMBER_BYTES} are accepted", uri)
    if shard.lower().endswith(".tar"):
        data = _range(uri, shard, offset, length, listed)
    else:
        # Name and extra field of the local header may be longer than the directory's, so it is read first.
        header = _range(uri, shard, offset, ZIP_LOCAL_HEADER.size, listed)
        magic, _, flags, method, _, _, _, _, _, name, extra = ZIP_LOCAL_HEADER.unpack(header)
        if magic != b"PK\x03\x04" or flags & 1:
            raise MemberError("the member is encrypted" if flags & 1 else "the shard is damaged here", uri)
        data = _inflate(uri, _range(uri, shard, offset + len(header) + name + extra, length, listed), method)
    return data, expected


def _range(uri: str, shard: str, offset: int, length: int, listed: str) -> bytes:
    if length == 0:
        return b""
    if storage.is_s3(shard):
        data, version = s3.get_range(shard, offset, length)
    else:
        with open(storage.local_path(shard), "rb") as stream:
            version = storage.local_version(os.fstat(stream.fileno()))
            stream.seek(offset)
            data = stream.read(length)
    if version != listed:
        raise MemberError("the shard changed after it was listed; the next run lists it anew", uri)
    if len(data) != length:
        raise MemberError("the shard ends before the member does", uri)
    return data


def _inflate(uri: str, data: bytes, method: int) -> bytes:
    if method == zipfile.ZIP_STORED:
        return data
    if method != zipfile.ZIP_DEFLATED:
        raise MemberError(f"compression method {method}; stored and deflated members are accepted", uri)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        whole = inflater.decompress(data, MAX_MEMBER_BYTES)
    except zlib.error as error:
        raise MemberError(f"the member is damaged ({error})", uri) from error
    if inflater.unconsumed_tail:
        raise MemberError(f"the member unpacks to over {MAX_MEMBER_BYTES} bytes", uri)
    return whole
