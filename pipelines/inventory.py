"""An archive becomes an inventory: a Parquet file of (uri, bytes, version), streamed, however large the archive is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from deeplab.files import MARKED_FILES, MARKER, marked_files
from deeplab.images import EXTENSIONS
from pipelines import lists, parquet_shards, s3, s3_inventory, shards, storage
from pipelines.lists import MISSING as MISSING
from pipelines.lists import ArchiveError as ArchiveError
from pipelines.lists import Entry

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


def take(
    archive: str, path: Path, *, include: tuple[str, ...] = (), exclude: tuple[str, ...] = (), limit: int | None = None
) -> Inventory:
    """List `archive` into the Parquet file `path`.

    archive: a folder (all below it), a glob, an s3:// prefix, a tar or zip, a list file (.txt, one path or URI a line,
    relative ones beside the list), an inventory (.parquet with a `uri` column; `version` and `bytes` are looked up where
    they are missing) or an S3 Inventory report (its manifest.json). Tar and zip shards, and Parquet files with image
    bytes, among what is found stand for their members. include, exclude: patterns
    against the path inside the archive and the bare name; without `include`, files with an image's extension are taken.
    limit: stop after so many.

    Raises ArchiveError when the archive is missing, unreadable, of another kind, or holds nothing to take.
    """
    passed_over = 0
    images = 0
    outputs: list[str] = []
    with pq.ParquetWriter(path, SCHEMA) as writer:
        named = _unpacked(_entries(archive, outputs.append))

        def chosen() -> Iterator[Entry]:
            nonlocal passed_over, images
            for relative, entry, listed in named:
                if limit is not None and images >= limit:
                    return
                if _matches(relative, include, exclude, listed):
                    images += 1
                    yield entry
                else:
                    passed_over += 1

        for rows in lists.groups(chosen(), 50_000):
            writer.write_table(pa.table([list(column) for column in zip(*rows, strict=True)], schema=SCHEMA))
    if not images:
        hint = f"; {passed_over} files were passed over by name (--include '*' takes them)" if passed_over else ""
        hint += f"; {len(outputs)} outputs of deeplab were passed over (name their folder to take them)" if outputs else ""
        raise ArchiveError(f"{archive}: no images found{hint}; accepted are {' '.join(EXTENSIONS)}")
    return Inventory(path, images, passed_over, len(outputs))


def _matches(relative: str, include: tuple[str, ...], exclude: tuple[str, ...], listed: bool) -> bool:
    name = relative.rsplit("/", 1)[-1]

    def any_of(patterns: tuple[str, ...]) -> bool:
        return any(fnmatch(relative, pattern) or fnmatch(name, pattern) for pattern in patterns)

    if exclude and any_of(exclude):
        return False
    if include:
        return any_of(include)
    return listed or (not name.startswith(".") and name.lower().endswith(KNOWN_IMAGES))


def _unpacked(entries: Iterable[tuple[str, Entry, bool]]) -> Iterator[tuple[str, Entry, bool]]:
    """The members of a shard in its place, unless it was listed as missing or unreadable."""
    for relative, (uri, size, version), listed in entries:
        if not shards.is_shard(uri) or shards.split(uri) or version == MISSING:
            yield relative, (uri, size, version), listed
            continue
        rows = uri.lower().endswith(parquet_shards.SUFFIX)  # their names have no extension
        if rows and not _holds_images(uri):
            yield relative, (uri, size, version), False
            continue
        for name, member, length, of in shards.members(uri, version):
            yield f"{relative}/{name}", (member, length, of), rows


def _holds_images(uri: str) -> bool:
    """Whether a Parquet file has a column of image bytes; a results table among the photos has none."""
    try:
        return parquet_shards.image_column(parquet_shards.open_file(uri).schema_arrow) is not None
    except (OSError, pa.ArrowInvalid) as error:
        raise ArchiveError(f"{uri}: not a readable Parquet file ({error}); --exclude does not skip it, take it away") from error


def _entries(archive: str, output: Callable[[str], None] = lambda place: None) -> Iterator[tuple[str, Entry, bool]]:
    """(path inside the archive, entry, named one by one by the user) of everything in it.

    Folders and files below it that this program wrote are left out, and `output` hears of them.
    """
    if archive.rsplit("/", 1)[-1] == s3_inventory.NAME:
        for uri, size, version in s3_inventory.objects(archive):
            yield s3.split(uri)[1], (uri, size, version), False
        return
    if storage.is_s3(archive):
        if archive.endswith(".parquet"):
            yield from _named(lists.from_inventory(archive))
            return
        prefix, found = archive.rstrip("/") + "/", False
        for uri, size, version in s3.list_objects(archive, output):
            found = True
            yield uri.removeprefix(prefix), (uri, size, version), False
        if not found:  # no folder: perhaps one image
            yield from _named(entry for entry in lists.looked_up([archive]) if entry[2] != MISSING)
        return
    path = storage.local_path(archive).expanduser()
    if path.is_dir():
        yield from _from_folder(path, output)
    elif path.suffix == ".parquet" and path.is_file():
        yield from _named(lists.from_inventory(str(path)))
    elif path.suffix in (".txt", ".lst", ".list") and path.is_file():
        yield from _named(lists.from_list(path))
    elif path.is_file():
        yield from _named(lists.looked_up([storage.canonical(str(path))]))
    elif any(character in archive for character in "*?["):
        yield from ((uri, (uri, size, version), False) for uri, size, version in lists.from_glob(str(path)))
    else:
        raise ArchiveError(
            f"{archive}: no such folder or file; a folder, a glob, a .tar or .zip, a .txt list, a .parquet inventory or s3:// "
            "is accepted"
        )


def _named(entries: Iterable[Entry]) -> Iterator[tuple[str, Entry, bool]]:
    """Images that the user named one by one, whatever they are called."""
    return ((entry[0], entry, True) for entry in entries)


def _from_folder(root: Path, output: Callable[[str], None]) -> Iterator[tuple[str, Entry, bool]]:
    """Depth first, sorted, hidden names left out; links to folders are not followed, so no loop can hold it up."""
    stack = [Path(os.path.abspath(root))]
    base = stack[0]
    while stack:
        folder = stack.pop()
        try:
            with os.scandir(folder) as scan:
                items = sorted(scan, key=lambda item: item.name)
        except OSError as error:
            raise ArchiveError(
                f"{folder}: cannot be listed ({error.strerror}); --exclude cannot skip it, fix its permissions"
            ) from error
        names = {item.name for item in items}
        if MARKER in names and folder != base:
            output(str(folder))
            continue
        own = marked_files(folder) if MARKED_FILES in names else set()
        folders = []
        for item in items:
            if item.name.startswith("."):
                continue
            if item.name in own:
                output(item.path)
                continue
            if item.is_dir(follow_symlinks=False):
                folders.append(Path(item.path))
                continue
            try:
                stat = item.stat()
                size, version = stat.st_size, storage.local_version(stat)
            except OSError:  # a dangling link, or gone since the listing: it becomes an error row
                size, version = 0, MISSING
            if not item.is_dir():
                path = Path(item.path)
                yield path.relative_to(base).as_posix(), (path.as_uri(), size, version), False
        stack.extend(reversed(folders))
