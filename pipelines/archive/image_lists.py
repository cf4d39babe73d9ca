"""Images named by the user: the lines of a text list, the rows of a Parquet inventory, a glob."""

from __future__ import annotations

import glob
import math
import os
import posixpath
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from deeplab import text_lists
from deeplab.errors import UserError
from pipelines.archive import parquet_shards, shards
from pipelines.storage import filesystems, s3

MISSING = "missing"
Entry = tuple[str, int, str]  # uri, bytes, version
T = TypeVar("T")
CACHED_SHARDS = 16  # whose members stay in memory while a list is looked up


class ArchiveError(UserError):
    """The archive cannot be listed or holds no images; the message says what is accepted."""


def groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def from_list(path: Path) -> Iterator[Entry]:
    """The images of a text list, each once. A line that begins with a hash and a blank is a comment. Raises ArchiveError."""
    try:
        lines = text_lists.lines(path.read_bytes(), str(path))
    except (OSError, text_lists.ListError) as error:
        raise ArchiveError(str(error)) from error
    uris: dict[str, None] = {}
    for number, line in lines:
        if line != "#" and not line.startswith(("# ", "#\t")):
            uris[_spelled(line, str(path.parent), f"{path}, line {number}")] = None
    yield from looked_up(uris)


def from_glob(pattern: str) -> Iterator[Entry]:
    """The files that match a pattern. Existing folders at its start are taken literally: `photos [2024]/*.jpg`."""
    parts = Path(pattern).parts
    literal = Path()
    while parts and os.path.exists(literal / parts[0]):
        literal, parts = literal / parts[0], parts[1:]
    paths = glob.iglob(str(Path(glob.escape(str(literal)), *parts)), recursive=True)
    yield from looked_up(filesystems.canonical(path) for path in paths if not os.path.isdir(path))


def looked_up(uris: Iterable[str]) -> Iterator[Entry]:
    """Size and version of each image, in a shard or not; MISSING if there is no such image."""
    members = lru_cache(maxsize=CACHED_SHARDS)(_members)
    for group in groups(uris, 1000):
        files = [uri for uri in group if shards.split(uri) is None]
        stats = dict(zip(files, filesystems.stat_all(files), strict=True))
        for uri in group:
            if (parts := shards.split(uri)) is not None:
                yield (uri, *members(parts[0]).get(uri, (0, MISSING)))
            else:
                stat = stats[uri]
                yield (uri, stat.size, stat.version) if stat else (uri, 0, MISSING)


def _members(shard: str) -> dict[str, tuple[int, str]]:
    """(bytes, version) of the members of a shard, by their URI; empty if the shard is gone or damaged."""
    (stat,) = filesystems.stat_all([shard])
    try:
        return {uri: (size, version) for _, uri, size, version in shards.members(shard, stat.version)} if stat else {}
    except (shards.ShardError, pa.ArrowInvalid):
        return {}


def _spelled(name: str, folder: str, where: str) -> str:
    """The URI of a name in a list that lies in `folder`; relative names are relative to it.

    `shard.tar#member` is a member if that shard exists; any other # is part of a name. ArchiveError that begins with `where` for
    an impossible name.
    """
    try:
        at = name.find("#")
        while at >= 0:
            if shards.is_shard(name[:at]):
                shard, member = _place(name[:at], folder), name[at + 1 :]
                if filesystems.is_s3(shard):
                    return shards.join(shard, member)
                if filesystems.local_path(shard).is_file():
                    return shards.join(shard, unquote(member) if "://" in name else member)
            at = name.find("#", at + 1)
        uri = _place(name, folder)
        if filesystems.is_s3(uri):
            s3.split(uri)
    except filesystems.StorageError as error:
        raise ArchiveError(f"{where}: {error}") from error
    if "\0" in uri or "%00" in uri:
        raise ArchiveError(f"{where}: {name!r} holds a NUL character, which no name may contain")
    return uri


def _place(name: str, folder: str) -> str:
    if name.startswith("file://"):  # perhaps typed by hand, with characters that a URI would encode
        return filesystems.canonical(name.replace("#", "%23").replace("?", "%3F"))
    if "://" in name or name.startswith("/"):
        return filesystems.canonical(name)
    if filesystems.is_s3(folder):
        return "s3://" + posixpath.normpath(f"{folder.removeprefix('s3://')}/{name}")
    return filesystems.canonical(str(Path(folder).expanduser() / name))


def from_inventory(archive: str) -> Iterator[Entry]:
    """The rows of a Parquet file with a column `uri`; `version` and `bytes` are looked up for rows without a version.

    Text may be of any of Arrow's types (plain, large, view, dictionary), and numbers of any width. Raises ArchiveError.
    """
    system, path = filesystems.filesystem(archive)
    try:
        # With pre_buffer the whole file would end up in memory.
        source = pq.ParquetFile(path, filesystem=system, pre_buffer=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise ArchiveError(f"{archive}: not a readable Parquet file ({error})") from error
    schema = source.schema_arrow
    if parquet_shards.image_column(schema) is not None:
        yield from looked_up([filesystems.canonical(archive)])
        return
    _require_columns(schema, archive)
    folder = filesystems.canonical(archive).rpartition("/")[0]
    folder = folder if filesystems.is_s3(folder) else str(filesystems.local_path(folder))
    wanted = [name for name in ("uri", "version", "bytes") if name in schema.names]
    row = 0
    for batch in source.iter_batches(columns=wanted):
        columns = [batch[name].to_pylist() if name in wanted else [None] * batch.num_rows for name in ("uri", "version", "bytes")]
        unversioned = []
        for name, version, size in zip(*columns, strict=True):
            row += 1
            if not name:
                continue
            uri = _spelled(name, folder, f"{archive}, row {row}")
            if version is None or version == "":
                unversioned.append(uri)
            else:
                yield uri, _whole_number(size), str(version)
        yield from looked_up(unversioned)


def _whole_number(size: float | None) -> int:
    return int(size) if size is not None and math.isfinite(size) else 0


def _require_columns(schema: pa.Schema, archive: str) -> None:
    """ArchiveError if the columns are not those of an inventory."""
    if "uri" not in schema.names:
        raise ArchiveError(
            f"{archive}: an inventory needs a text column `uri` (and may have `version`, `bytes`), a shard a column of image "
            f"bytes ({', '.join(parquet_shards.IMAGE_COLUMNS)}); this has {', '.join(schema.names)}"
        )
    types = pa.types
    for name, wanted, fits in (
        ("uri", "text", _is_text),
        ("version", "text or numbers", lambda kind: _is_text(kind) or types.is_integer(kind)),
        ("bytes", "numbers", lambda kind: types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)),
    ):
        if name in schema.names and not (types.is_null(schema.field(name).type) or fits(schema.field(name).type)):
            raise ArchiveError(f"{archive}: the column `{name}` of an inventory is {wanted}; here it is {schema.field(name).type}")


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
