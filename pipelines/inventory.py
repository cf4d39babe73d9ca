"""An archive becomes an inventory: a Parquet file of (uri, bytes, version), streamed, however large the archive is."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from deeplab.errors import UserError
from deeplab.images import EXTENSIONS
from pipelines import faults, loading, local, parquet_shards, s3, s3_inventory, shards, storage

SCHEMA = pa.schema([("uri", pa.string()), ("bytes", pa.int64()), ("version", pa.string())])
# Names that say "image" but hold formats that are not decoded: better an error row with the reason than silence.
KNOWN_IMAGES = (*EXTENSIONS, ".heic", ".heif", ".jxl", ".psd", ".svg", ".ico", ".raw", ".cr2", ".nef", ".arw", ".dng")
MISSING = "missing"


class ArchiveError(UserError):
    """The archive cannot be listed or holds no images; the message says what was looked for."""


@dataclass(frozen=True)
class Inventory:
    """What `take` found: the Parquet file, its rows, and how many files were passed over for their names."""

    path: Path
    images: int
    passed_over: int


Entry = tuple[str, int, str]
# Named one by one by the user, which needs no image's extension. None: what is in it could not be listed, so that it is one
# error row in itself, unless it is excluded.
Listed = bool | None
Named = tuple[str, Entry, Listed]  # the first is the path inside the archive
T = TypeVar("T")


def take(
    archive: str, path: Path, *, include: tuple[str, ...] = (), exclude: tuple[str, ...] = (), limit: int | None = None
) -> Inventory:
    """List `archive` into the Parquet file `path`.

    archive: a folder (all below it), a glob, an s3:// prefix, a tar or zip, a list file (.txt, one path or URI a line,
    relative ones beside the list), an inventory (.parquet with a `uri` column; `version` and `bytes` are looked up where
    they are missing) or an S3 Inventory report (its manifest.json). Tar and zip shards, and Parquet files with image
    bytes, among what is found stand for their members; a folder or shard that cannot be listed stands for itself.
    include, exclude: patterns against the path inside the archive and the bare name, of shards and members; without
    `include`, files with an image's extension are taken.
    limit: stop after so many.

    Raises ArchiveError when the archive is missing, unreadable, of another kind, or holds nothing to take.
    """
    passed_over = images = unread = 0
    first_unread: Entry | None = None
    with pq.ParquetWriter(path, SCHEMA) as writer:
        named = _unpacked(_entries(archive), exclude)

        def chosen() -> Iterator[Entry]:
            nonlocal passed_over, images, unread, first_unread
            for relative, entry, listed in named:
                if limit is not None and images >= limit:
                    return
                if not _matches(relative, include, exclude, listed):
                    passed_over += 1
                    continue
                images += 1
                if listed is None:
                    unread += 1
                    first_unread = first_unread or entry
                yield entry

        for rows in _groups(chosen(), 50_000):
            writer.write_table(pa.table([list(column) for column in zip(*rows, strict=True)], schema=SCHEMA))
    if first_unread is not None and images == unread:
        uri, _, version = first_unread
        raise ArchiveError(f"{archive}: no images found; {uri}: {loading.read(uri, version)[2]}")
    if not images:
        hint = f"; {passed_over} files were passed over by name (--include '*' takes them)" if passed_over else ""
        raise ArchiveError(f"{archive}: no images found{hint}; accepted are {' '.join(EXTENSIONS)}")
    return Inventory(path, images, passed_over)


def _groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def _matches(relative: str, include: tuple[str, ...], exclude: tuple[str, ...], listed: Listed) -> bool:
    if _fits(relative, exclude) or (listed is None and _fits(f"{relative}/", exclude)):
        return False
    if listed is None:
        return True
    if include:
        return _fits(relative, include)
    name = relative.rsplit("/", 1)[-1]
    return listed or (not name.startswith(".") and name.lower().endswith(KNOWN_IMAGES))


def _fits(relative: str, patterns: tuple[str, ...]) -> bool:
    name = relative.rsplit("/", 1)[-1]
    return any(fnmatch(relative, pattern) or fnmatch(name, pattern) for pattern in patterns)


def _unpacked(entries: Iterable[Named], exclude: tuple[str, ...]) -> Iterator[Named]:
    """The members of a shard in its place, and the shard itself where it cannot be listed to its end; none that is excluded
    is opened."""
    for relative, (uri, size, version), listed in entries:
        if not shards.is_shard(uri) or listed is None or _fits(relative, exclude):
            yield relative, (uri, size, version), listed
            continue
        if version == MISSING:
            yield relative, (uri, 0, MISSING), None
            continue
        rows = uri.lower().endswith(parquet_shards.SUFFIX)  # their names have no extension
        members = 0
        try:
            for name, member, length, of in shards.members(uri, version):
                members += 1
                yield f"{relative}/{name}", (member, length, of), rows
        except shards.ShardError:
            yield relative, (uri, 0, version), None
        else:
            if not members:  # such as a results table's files among the photos
                yield relative, (uri, size, version), False


def _entries(archive: str) -> Iterator[Named]:
    """Everything in an archive."""
    if archive.rsplit("/", 1)[-1] == s3_inventory.NAME:
        for uri, size, version in s3_inventory.objects(archive):
            yield s3.split(uri)[1], (uri, size, version), False
        return
    if storage.is_s3(archive):
        if archive.endswith(".parquet"):
            yield from _from_parquet(archive)
            return
        prefix, found = archive.rstrip("/") + "/", False
        for uri, size, version in s3.list_objects(archive):
            found = True
            yield uri.removeprefix(prefix), (uri, size, version), False
        if not found:  # no folder: perhaps one image
            yield from (entry for entry in _looked_up([archive], True) if entry[1][2] != MISSING)
        return
    path = storage.local_path(archive).expanduser()
    if path.is_dir():
        yield from _from_folder(path)
    elif path.suffix == ".parquet" and path.is_file():
        yield from _from_parquet(str(path))
    elif path.suffix in (".txt", ".lst", ".list") and path.is_file():
        yield from _from_list(path)
    elif path.is_file():
        yield from _looked_up([storage.canonical(str(path))], True)
    elif any(character in archive for character in "*?["):
        yield from _looked_up(
            (storage.canonical(found) for found in glob.iglob(str(path), recursive=True) if os.path.isfile(found)), False
        )
    else:
        raise ArchiveError(
            f"{archive}: no such folder or file; a folder, a glob, a .tar or .zip, a .txt list, a .parquet inventory or s3:// "
            "is accepted"
        )


def _from_folder(root: Path) -> Iterator[Named]:
    """Depth first, sorted, hidden names left out; links to folders are not followed, so no loop can hold it up.

    What is no file, cannot be looked at or, being a folder, cannot be listed is MISSING, and becomes an error row.
    """
    base = Path(os.path.abspath(root))
    stack = [base]
    while stack:
        folder = stack.pop()
        try:
            names = local.names(folder)
        except faults.OWN as error:
            if folder == base:
                raise ArchiveError(f"{root}: cannot be listed ({faults.reason(error)})") from error
            yield folder.relative_to(base).as_posix(), (folder.as_uri(), 0, MISSING), None
            continue
        folders = []
        for entry in local.entries(names):
            path = folder / entry.name
            if entry.folder and not entry.link:
                folders.append(path)
            elif not entry.folder:
                size, version = (entry.state.st_size, storage.local_version(entry.state)) if entry.state else (0, MISSING)
                yield path.relative_to(base).as_posix(), (path.as_uri(), size, version), False
        stack.extend(reversed(folders))


def _from_list(path: Path) -> Iterator[Named]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{path}: not a readable UTF-8 list ({error})") from error
    names = (line.strip() for line in lines if line.strip() and not line.startswith("#"))
    yield from _looked_up(dict.fromkeys(_beside(name, path.parent) for name in names), True)


def _beside(name: str, folder: Path) -> str:
    return name if storage.is_s3(name) else storage.canonical(name if "://" in name else str(folder / name))


def _looked_up(uris: Iterable[str], listed: bool) -> Iterator[Named]:
    for group in _groups(uris, 1000):
        for uri, stat in zip(group, storage.stat_all(list(group)), strict=True):
            yield uri, (uri, stat.size if stat else 0, stat.version if stat else MISSING), listed


def _from_parquet(archive: str) -> Iterator[Named]:
    system, inner = storage.filesystem(archive)
    try:
        # Read ahead, the whole file would be in memory at the end.
        source = pq.ParquetFile(inner, filesystem=system, pre_buffer=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise ArchiveError(f"{archive}: not a readable Parquet file ({error})") from error
    columns = source.schema_arrow.names
    if parquet_shards.image_column(source.schema_arrow) is not None:
        yield from _looked_up([storage.canonical(archive)], True)
        return
    if "uri" not in columns or not pa.types.is_string(source.schema_arrow.field("uri").type):
        raise ArchiveError(
            f"{archive}: an inventory needs a string column `uri` (and may have `version`, `bytes`), a shard "
            f"a column of image bytes ({', '.join(parquet_shards.IMAGE_COLUMNS)}); this has {columns}"
        )
    wanted = [name for name in ("uri", "version", "bytes") if name in columns]
    for batch in source.iter_batches(columns=wanted):
        columns = [batch[name].to_pylist() if name in wanted else [None] * batch.num_rows for name in ("uri", "version", "bytes")]
        rows = [(storage.canonical(uri), version, size) for uri, version, size in zip(*columns, strict=True) if uri]
        if "version" not in wanted:
            yield from _looked_up((uri for uri, _, _ in rows), True)
            continue
        for uri, version, size in rows:
            yield uri, (uri, int(size or 0), str(version)), True
