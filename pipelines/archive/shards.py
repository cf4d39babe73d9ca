"""Images inside tar and zip shards (WebDataset and the like), addressed as `shard.tar#member` and read by offset.

A member's version is `SHARD-VERSION@OFFSET+LENGTH`: with it a reader fetches only the member's bytes and sees whether the shard
has changed. Nothing is unpacked to disk. Parquet files with image bytes are shards as well (`parquet_shards.py`): there the two
numbers are row group and row.
"""

from __future__ import annotations

import errno
import io
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from urllib.parse import quote, unquote, unquote_to_bytes

from deeplab.errors import one_line
from deeplab.safe_names import leads_outside
from pipelines.archive import parquet_shards, shards
from pipelines.storage import filesystems
from pipelines.storage.object_file import CHANGED, open_object
from pipelines.storage.storage_errors import OWN, EntryError, StorageError, reason

SUFFIXES = (".tar", ".zip", parquet_shards.SUFFIX)
MAX_MEMBER_BYTES = 1 << 30  # no photo is larger: a larger member is a zip bomb
BYTES = re.compile("[\udc80-\udcff]")  # Python's surrogates for bytes of names that are not UTF-8
ACCEPTED = dict.fromkeys(("tar", "zip"), "uncompressed tar and zip are accepted") | {"parquet": "write it again"}
ZIP_LOCAL_HEADER = struct.Struct("<4sHHHHHLLLHH")


class ShardError(EntryError):
    """A shard cannot be listed to its end: damaged, compressed as a whole, of another type than its name says, or unreadable."""


class MemberError(EntryError):
    """A member is refused or has changed since it was listed."""


def is_shard(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def split(uri: str) -> tuple[str, str] | None:
    """Shard and member of a member's URI; None for any other URI."""
    shard, mark, member = uri.partition("#")
    if not mark or not is_shard(shard):
        return None
    return shard, member if filesystems.is_s3(uri) else os.fsdecode(unquote_to_bytes(member))


def join(shard: str, member: str) -> str:
    """The URI of a member. On S3 only the bytes of its name that are not UTF-8 are percent-encoded."""
    if not filesystems.is_s3(shard):
        return f"{shard}#{quote(os.fsencode(member))}"
    return f"{shard}#{BYTES.sub(lambda byte: f'%{ord(byte[0]) - 0xDC00:02X}', member)}"


def members(shard: str, version: str) -> Iterator[tuple[str, str, int, str]]:
    """(name, URI, bytes, version) of every entry of a shard that is not a folder, in its order; empty for a Parquet file without
    images. A name may occur more than once: the last one counts.

    Only the directory of a zip or Parquet file is read; a tar has none, so its headers are visited one by one. Raises ShardError
    at the first entry that cannot be read, and StorageError.
    """
    kind = shard.rpartition(".")[2].lower()
    listing = {"zip": _zip_members, "tar": _tar_members, "parquet": parquet_shards.members}[kind]
    try:
        with open_object(shard, version) as stream:
            for name, offset, length, size in listing(stream):
                yield name, join(shard, name), size, f"{version}@{offset}+{length}"
    except (StorageError, MemoryError):
        raise
    except OWN as error:
        raise ShardError(error.errno, reason(error), shard) from error
    except Exception as error:  # damage raises almost any exception
        raise ShardError(errno.EBADMSG, f"not a readable {kind} ({one_line(error)}); {ACCEPTED[kind]}", shard) from error


def fault(shard: str, version: str) -> EntryError:
    """Why a shard is itself in the inventory, with or without its members: lists it again and returns the error."""
    empty = True
    try:
        for _ in members(shard, version):
            empty = False
    except ShardError as error:
        return error
    return ShardError(errno.ESTALE, "it holds no images" if empty else CHANGED, shard)


def _tar_members(stream: io.BufferedReader) -> Iterator[tuple[str, int, int, int]]:
    """A link or a device has offset and length -1: it becomes an error row and is never followed."""
    with tarfile.open(fileobj=stream, mode="r:") as shard:
        start = -1
        while (member := shard.next()) is not None:
            if shard.offset <= start:  # a negative size would make the listing endless
                raise tarfile.ReadError(f"damaged at byte {member.offset}")
            start = shard.offset
            shard.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all members
            if member.isfile() and member.sparse is None:
                yield member.name, member.offset_data, member.size, member.size
            elif not member.isdir():
                yield member.name, -1, -1, 0
        end = shard.offset  # tarfile takes a damaged header for the end; a real end is zeros or nothing
    stream.seek(end)
    if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"damaged at byte {end}")


def _zip_members(stream: io.BufferedReader) -> Iterator[tuple[str, int, int, int]]:
    with zipfile.ZipFile(stream) as shard:
        for member in shard.infolist():
            if not member.is_dir():
                yield member.filename, member.header_offset, member.compress_size, member.file_size


def fetch(uri: str, expected: str) -> tuple[bytes, str]:
    """All bytes of an image, in a shard or not, and their version; errors as `read_versioned`."""
    if split(uri):
        return read(uri, expected)
    if is_shard(uri):
        raise fault(uri, expected)
    return filesystems.read_versioned(uri)


def read(uri: str, expected: str) -> tuple[bytes, str]:
    """All bytes of a member and its version; MemberError if it is refused or has changed; other errors as `fetch`."""
    parts = split(uri)
    assert parts is not None
    shard, member = parts
    listed, mark, place = expected.rpartition("@")
    start, plus, span = place.partition("+")
    if not (mark and plus):
        raise _refused(f"a member needs the version SHARD@OFFSET+LENGTH, not {expected!r}; list the shard itself", uri)
    offset, length = int(start), int(span)
    if leads_outside(member):
        raise _refused("the member's name leads outside its shard", uri)
    if shard.lower().endswith(parquet_shards.SUFFIX):
        try:
            return parquet_shards.read(shard, listed, offset, length), expected
        except ValueError as error:
            raise _refused(str(error), uri) from error
    if offset < 0:
        raise _refused("a link or device inside a shard is not followed", uri)
    if length > MAX_MEMBER_BYTES:
        raise _refused(f"the member has {length} bytes; up to {MAX_MEMBER_BYTES} are accepted", uri)
    if shard.lower().endswith(".tar"):
        data = _range(uri, shard, offset, length, listed)
    else:
        # Name and extra field of the local header may be longer than those in the directory, so it is read first.
        header = _range(uri, shard, offset, ZIP_LOCAL_HEADER.size, listed)
        magic, _, flags, method, _, _, _, _, _, name, extra = ZIP_LOCAL_HEADER.unpack(header)
        if magic != b"PK\x03\x04" or flags & 1:
            raise _refused("the member is encrypted" if flags & 1 else "the shard is damaged here", uri)
        data = _inflate(uri, _range(uri, shard, offset + len(header) + name + extra, length, listed), method)
    return data, expected


def _range(uri: str, shard: str, offset: int, length: int, listed: str) -> bytes:
    if length == 0:
        return b""
    data, version = filesystems.read_range(shard, offset, length)
    if version != listed:
        raise _refused(CHANGED, uri)
    if len(data) != length:
        raise _refused("the shard ends before the member does", uri)
    return data


def _refused(why: str, uri: str) -> MemberError:
    return MemberError(errno.EINVAL, why, uri)


def _inflate(uri: str, data: bytes, method: int) -> bytes:
    if method == zipfile.ZIP_STORED:
        return data
    if method != zipfile.ZIP_DEFLATED:
        raise _refused(f"compression method {method}; stored and deflated members are accepted", uri)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        whole = inflater.decompress(data, MAX_MEMBER_BYTES)
    except zlib.error as error:
        raise _refused(f"the member is damaged ({error})", uri) from error
    if inflater.unconsumed_tail:
        raise _refused(f"the member unpacks to over {MAX_MEMBER_BYTES} bytes", uri)
    return whole


def parts_of(uri: str) -> list[str]:
    """The parts of an image's URI, encoded as there: scheme, bucket, folders, name; a shard counts as a folder."""
    path, mark, member = uri.partition("#") if shards.split(uri) else (uri, "", "")
    scheme, _, rest = path.partition("://")
    return [scheme, *rest.removeprefix("/").split("/"), *(member.split("/") if mark else ())]


def path_of(parts: list[str], local: bool, errors: str = "surrogateescape") -> str:
    """Parts of a URI as a path. `errors`: the codec's error handler for bytes that are not UTF-8."""
    path = "/".join(parts)
    return unquote(path, errors=errors) if local else path


def name_of(uri: str) -> str:
    """The path in the bucket or on the disk as printable text."""
    scheme, *parts = parts_of(uri)
    return f"/{path_of(parts, True, 'backslashreplace')}" if scheme == "file" else f"{scheme}://{path_of(parts, False)}"
