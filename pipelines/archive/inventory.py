"""An archive becomes an inventory: a Parquet file of (uri, bytes, version), streamed, however large the archive is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from deeplab.files import MARKER, marked_files
from deeplab.images.decoding import EXTENSIONS
from pipelines.archive import image_lists, s3_inventory, shards
from pipelines.archive.image_bytes import read
from pipelines.archive.image_lists import MISSING, ArchiveError, Entry
from pipelines.archive.parquet_shards import SUFFIX as PARQUET
from pipelines.storage import filesystems, local_files, s3, storage_errors

SCHEMA = pa.schema([("uri", pa.string()), ("bytes", pa.int64()), ("version", pa.string())])
# Names that say "image" but hold formats that are not decoded: better an error row with the reason than silence.
KNOWN_IMAGES = (*EXTENSIONS, ".heic", ".heif", ".jxl", ".psd", ".svg", ".ico", ".raw", ".cr2", ".nef", ".arw", ".dng")


@dataclass(frozen=True)
class Inventory:
    """What `take` found: the Parquet file, its rows, how many files were passed over for their names, and how many folders
    and files because this program wrote them (`deeplab.files.mark_output`)."""

    path: Path
    images: int
    passed_over: int
    outputs: int


# Named one by one by the user, which needs no image's extension. None: what is in it could not be listed, so that it is one
# error row in itself, unless it is excluded.
Listed = bool | None
Named = tuple[str, Entry, Listed]  # the first is the path inside the archive


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
    outputs: list[str] = []
    with pq.ParquetWriter(path, SCHEMA) as writer:
        named = _unpacked(_entries(archive, outputs.append), exclude)

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

        for rows in image_lists.groups(chosen(), 50_000):
            writer.write_table(pa.table([list(column) for column in zip(*rows, strict=True)], schema=SCHEMA))
    if first_unread is not None and images == unread:
        uri, _, version = first_unread
        raise ArchiveError(f"{archive}: no images found; {uri}: {read(uri, version)[2]}")
    if not images:
        hint = f"; {passed_over} files were passed over by name (--include '*' takes them)" if passed_over else ""
        hint += f"; {len(outputs)} outputs of deeplab were passed over (name their folder to take them)" if outputs else ""
        raise ArchiveError(f"{archive}: no images found{hint}; accepted are {' '.join(EXTENSIONS)}")
    return Inventory(path, images, passed_over, len(outputs))


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
        if not shards.is_shard(uri) or shards.split(uri) or listed is None or _fits(relative, exclude):
            yield relative, (uri, size, version), listed
            continue
        if version == MISSING:
            yield relative, (uri, 0, MISSING), None
            continue
        rows = uri.lower().endswith(PARQUET)  # their names have no extension
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


def _entries(archive: str, output: Callable[[str], None] = lambda place: None) -> Iterator[Named]:
    """Everything in an archive. Folders and files below it that this program wrote are left out, and `output` hears of them."""
    if archive.rsplit("/", 1)[-1] == s3_inventory.NAME:
        for uri, size, version in s3_inventory.objects(archive):
            yield s3.split(uri)[1], (uri, size, version), False
        return
    if filesystems.is_s3(archive):
        if archive.endswith(".parquet"):
            yield from _named(image_lists.from_inventory(archive))
            return
        prefix, found = archive.rstrip("/") + "/", False
        for uri, size, version in s3.list_objects(archive, output):
            found = True
            yield uri.removeprefix(prefix), (uri, size, version), False
        if not found:  # no folder: perhaps one image
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
    elif any(character in archive for character in "*?["):
        yield from ((uri, (uri, size, version), False) for uri, size, version in image_lists.from_glob(str(path)))
    else:
        raise ArchiveError(
            f"{archive}: no such folder or file; a folder, a glob, a .tar or .zip, a .txt list, a .parquet inventory or s3:// "
            "is accepted"
        )


def _named(entries: Iterable[Entry]) -> Iterator[Named]:
    """Images that the user named one by one, whatever they are called."""
    return ((entry[0], entry, True) for entry in entries)


def _from_folder(root: Path, output: Callable[[str], None]) -> Iterator[Named]:
    """Depth first, sorted, hidden names left out; links to folders are not followed, so no loop can hold it up.

    What is no file, cannot be looked at or, being a folder, cannot be listed is MISSING, and becomes an error row.
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
