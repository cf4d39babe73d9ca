"""The inventory of an archive: a Parquet file of (uri, bytes, version), streamed, so that archives of any size fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from deeplab.errors import counted
from deeplab.files import MARKER, marked_files
from deeplab.images.decoding import EXTENSIONS
from pipelines.archive import image_lists, s3_inventory, shards
from pipelines.archive.image_bytes import read
from pipelines.archive.image_lists import MISSING, ArchiveError, Entry
from pipelines.archive.parquet_shards import SUFFIX as PARQUET
from pipelines.storage import filesystems, local_files, s3, storage_errors

SCHEMA = pa.schema([("uri", pa.string()), ("bytes", pa.int64()), ("version", pa.string())])
# Also extensions of image formats that are not decoded: they become error rows with a reason instead of being passed over.
KNOWN_IMAGES = (*EXTENSIONS, ".psd", ".svg", ".ico", ".raw", ".cr2", ".nef", ".arw", ".dng")


@dataclass(frozen=True)
class Inventory:
    """The result of `take`. `passed_over`: files left out by name; `outputs`: files and folders left out because this program wrote
    them (`deeplab.files.mark_output`)."""

    path: Path
    images: int
    passed_over: int
    outputs: int


# Whether the user named the image itself, which then needs no image's extension. None: a folder or shard that could not be
# listed, which becomes one error row unless it is excluded.
Listed = bool | None
Named = tuple[str, Entry, Listed]  # path inside the archive, entry, listed


def take(
    archive: str, path: Path, *, include: tuple[str, ...] = (), exclude: tuple[str, ...] = (), limit: int | None = None
) -> Inventory:
    """List `archive` into the Parquet file `path`.

    archive: a folder (all below it), a glob, an s3:// prefix, a tar or zip, a list file (.txt, one path or URI per line,
    relative to the list), an inventory (.parquet with a `uri` column; missing `version` and `bytes` are looked up) or an S3
    Inventory report (its manifest.json). Tar and zip shards, and Parquet files with image bytes, are replaced by their members; a
    folder or shard that cannot be listed is an entry itself.
    include, exclude: patterns for the path inside the archive and the bare name, of shards and members; without `include`, files
    with an image's extension are taken.
    limit: most images to list.

    Raises ArchiveError if the archive is missing, unreadable, of an unknown kind, or holds no images.
    """
    passed_over = images = unlisted = 0
    first_unlisted: Entry | None = None
    outputs: list[str] = []
    with pq.ParquetWriter(path, SCHEMA) as writer:
        named = _unpacked(_entries(archive, outputs.append), exclude)

        def chosen() -> Iterator[Entry]:
            nonlocal passed_over, images, unlisted, first_unlisted
            for relative, entry, listed in named:
                if limit is not None and images >= limit:
                    return
                if not _matches(relative, include, exclude, listed):
                    passed_over += 1
                    continue
                images += 1
                if listed is None:
                    unlisted += 1
                    first_unlisted = first_unlisted or entry
                yield entry

        for rows in image_lists.groups(chosen(), 50_000):
            writer.write_table(pa.table([list(column) for column in zip(*rows, strict=True)], schema=SCHEMA))
    if first_unlisted is not None and images == unlisted:
        uri, _, version = first_unlisted
        raise ArchiveError(f"{archive}: no images found; {uri}: {read(uri, version)[2]}")
    if not images:
        hint = f"; {counted(passed_over, 'file')} passed over by name (--include '*' takes every file)" if passed_over else ""
        if outputs:
            hint += f"; {counted(len(outputs), 'output')} of deeplab passed over (to take one, name its folder)"
        raise ArchiveError(f"{archive}: no images found{hint}; accepted are {' '.join(EXTENSIONS)}")
    return Inventory(path, images, passed_over, len(outputs))


def require(archive: str) -> None:
    """ArchiveError if a local archive does not exist: at once, before anything is loaded or started for it."""
    if not _elsewhere(archive) and not (_is_glob(archive) or filesystems.local_path(archive).expanduser().exists()):
        raise _no_archive(archive)


def _elsewhere(archive: str) -> bool:
    return filesystems.is_s3(archive) or archive.rsplit("/", 1)[-1] == s3_inventory.NAME


def _is_glob(archive: str) -> bool:
    return any(character in archive for character in "*?[")


def _no_archive(archive: str) -> ArchiveError:
    return ArchiveError(
        f"{archive}: no such folder or file; a folder, a glob, a .tar or .zip, a .txt list, a .parquet inventory or s3:// "
        "is accepted"
    )


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
    """Replaces shards by their members, and adds the shard itself if it cannot be listed to its end. Excluded shards are not
    opened."""
    for relative, (uri, size, version), listed in entries:
        if not shards.is_shard(uri) or shards.split(uri) or listed is None or _fits(relative, exclude):
            yield relative, (uri, size, version), listed
            continue
        if version == MISSING:
            yield relative, (uri, 0, MISSING), None
            continue
        is_parquet = uri.lower().endswith(PARQUET)  # the names of its members have no extension
        members = 0
        try:
            for name, member, length, member_version in shards.members(uri, version):
                members += 1
                yield f"{relative}/{name}", (member, length, member_version), is_parquet
        except shards.ShardError:
            yield relative, (uri, 0, version), None
        else:
            if not members:  # such as the files of a results table among the photos
                yield relative, (uri, size, version), False


def _entries(archive: str, output: Callable[[str], None] = lambda place: None) -> Iterator[Named]:
    """All entries of an archive, without folders and files below it that this program wrote, which `output` gets."""
    if archive.rsplit("/", 1)[-1] == s3_inventory.NAME:
        for uri, size, version in s3_inventory.objects(archive):
            yield s3.split(uri)[1], (uri, size, version), False
        return
    if filesystems.is_s3(archive):
        if archive.endswith(".parquet"):
            yield from _named(image_lists.from_inventory(archive))
            return
        prefix, empty = archive.rstrip("/") + "/", True
        for uri, size, version in s3.list_objects(archive, output):
            empty = False
            yield uri.removeprefix(prefix), (uri, size, version), False
        if empty:  # not a folder: perhaps one image
            yield from _named(entry for entry in image_lists.looked_up([archive]) if entry[2] != MISSING)
        return
    path = filesystems.local_path(archive).expanduser()
    if os.path.isdir(path):
        yield from _from_folder(path, output)
    elif path.suffix == ".parquet" and os.path.isfile(path):
        yield from _named(image_lists.from_inventory(str(path)))
    elif path.suffix in (".txt", ".lst", ".list") and os.path.isfile(path):
        yield from _named(image_lists.from_list(path))
    elif os.path.isfile(path):
        yield from _named(image_lists.looked_up([filesystems.canonical(str(path))]))
    elif _is_glob(archive):
        yield from ((uri, (uri, size, version), False) for uri, size, version in image_lists.from_glob(str(path)))
    else:
        raise _no_archive(archive)


def _named(entries: Iterable[Entry]) -> Iterator[Named]:
    """Images that the user named one by one, whatever their extension."""
    return ((entry[0], entry, True) for entry in entries)


def _from_folder(root: Path, output: Callable[[str], None]) -> Iterator[Named]:
    """Depth first, sorted, without hidden names; links to folders are not followed, so there are no loops.

    Folders that cannot be listed, and entries that are not files or not accessible, are MISSING and become error rows.
    """
    base = Path(os.path.abspath(root))
    stack = [base]
    while stack:
        folder = stack.pop()
        try:
            names = local_files.names(folder)
        except storage_errors.OWN as error:
            if folder == base:
                raise ArchiveError(f"{root}: cannot be listed ({storage_errors.reason(error)})") from error
            yield folder.relative_to(base).as_posix(), (folder.as_uri(), 0, MISSING), None
            continue
        if folder != base and os.path.lexists(folder / MARKER):
            output(str(folder))
            continue
        own = marked_files(folder)
        folders = []
        for entry in local_files.entries(names):
            path = folder / entry.name
            if entry.name in own:
                output(str(path))
            elif entry.folder and not entry.link:
                folders.append(path)
            elif not entry.folder:
                size, version = (entry.state.st_size, filesystems.local_version(entry.state)) if entry.state else (0, MISSING)
                yield path.relative_to(base).as_posix(), (path.as_uri(), size, version), False
        stack.extend(reversed(folders))
