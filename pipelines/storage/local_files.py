"""Reading local files and folders: without blocking, with a deadline, and with faults of a file kept apart from those of the disk.

Pipes, sockets and devices are never opened. A read without progress for READ_SECONDS is given up.
"""

from __future__ import annotations

import errno
import io
import os
import stat as modes
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipelines.storage.deadline import Beat, NoAnswer, within
from pipelines.storage.storage_errors import OWN, SYSTEM, EntryError, Outage, StorageError, reason, require_fitting

READ_SECONDS = 30.0  # without progress; the same as for S3
PIECE = 8 << 20  # most bytes per read
BATCH = 256  # entries of a folder that one call looks at
SMALL = 64 << 10  # least bytes per read: files of /proc claim to be empty
KINDS = (
    (modes.S_ISDIR, "a folder"),
    (modes.S_ISFIFO, "a named pipe"),
    (modes.S_ISSOCK, "a socket"),
    (modes.S_ISCHR, "a device"),
    (modes.S_ISBLK, "a device"),
)
T = TypeVar("T")


def stat(path: Path) -> os.stat_result:
    """The state of a regular file, also behind a link. Raises an error of `storage_errors.OWN`, or StorageError."""
    return _judged(path, lambda beat: _regular(path, os.stat(path)))


def read(path: Path, start: int = 0, length: int | None = None) -> tuple[bytes, os.stat_result]:
    """`length` bytes of a regular file from `start` (fewer at its end), or all, and its state before the read.

    Raises an error of `storage_errors.OWN`, or StorageError. Memory: the bytes, once.
    """

    def whole(beat: Beat) -> tuple[bytes, os.stat_result]:
        _regular(path, os.stat(path))  # before opening, which may have an effect on a device
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            before = _regular(path, os.fstat(descriptor))  # the file may have been replaced in between
            if length is None:
                require_fitting(before.st_size, str(path))
            data = io.BytesIO()
            while length is None or data.tell() < length:
                offset = start + data.tell()
                count = length - data.tell() if length is not None else max(before.st_size - offset + 1, SMALL)
                piece = os.pread(descriptor, min(PIECE, count), offset)
                beat()
                if not piece:
                    break
                data.write(piece)
            return data.getvalue(), before
        finally:
            os.close(descriptor)

    return _judged(path, whole)


@dataclass(frozen=True)
class Entry:
    """An entry of a folder. `state`: of a regular file, also behind a link, else None. `folder`: a folder, or (`link`) a link to
    one."""

    name: str
    state: os.stat_result | None
    folder: bool
    link: bool


def names(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder by name, without hidden ones. Raises an error of `storage_errors.OWN`, or StorageError."""

    def scan(beat: Beat) -> list[os.DirEntry[str]]:
        visible = []
        with os.scandir(folder) as items:
            for item in items:
                beat()
                if not item.name.startswith("."):
                    visible.append(item)
        return sorted(visible, key=lambda item: item.name)

    return _judged(folder, scan)


def entries(items: list[os.DirEntry[str]]) -> Iterator[Entry]:
    """The entries of `names`, looked up BATCH at a time. StorageError for faults of the system."""
    done = 0
    while done < len(items):
        results: list[Entry] = []

        def look(beat: Beat, batch: list[os.DirEntry[str]] = items[done : done + BATCH], into: list[Entry] = results) -> None:
            for item in batch:
                into.append(_entry(item))
                beat()

        stuck = False
        try:
            within(READ_SECONDS, look)
        except NoAnswer:  # the entries after it may answer
            stuck = True
        results = results[:BATCH]
        done += len(results)
        yield from results
        if stuck and done < len(items):
            yield Entry(items[done].name, None, folder=False, link=False)
            done += 1


def _entry(item: os.DirEntry[str]) -> Entry:
    try:
        if item.is_dir(follow_symlinks=False):
            return Entry(item.name, None, folder=True, link=False)
        state = item.stat()
    except (OSError, ValueError) as error:  # a dangling link, a loop of links, removed meanwhile: reading it will say which
        if isinstance(error, OSError) and error.errno in SYSTEM:
            raise Outage(f"{item.path}: {error.strerror}") from error
        return Entry(item.name, None, folder=False, link=False)
    if modes.S_ISDIR(state.st_mode):
        return Entry(item.name, None, folder=True, link=True)
    return Entry(item.name, state if modes.S_ISREG(state.st_mode) else None, folder=False, link=False)


def _regular(path: Path, state: os.stat_result) -> os.stat_result:
    """`state` of a regular file; else raises an error that says what it is, or why a folder cannot be listed."""
    if modes.S_ISREG(state.st_mode):
        return state
    if modes.S_ISDIR(state.st_mode):
        os.scandir(path).close()
    kind = next((name for test, name in KINDS if test(state.st_mode)), "of an unknown kind")
    raise EntryError(errno.EINVAL, f"it is {kind}, not a file", str(path))


def _judged(path: Path, action: Callable[[Beat], T]) -> T:
    """The result of `action` for a path. Its errors become errors of `storage_errors.OWN` if the folder of the path answers, and
    StorageError if it does not or if their number is in SYSTEM."""
    try:
        return within(READ_SECONDS, action)
    except (*OWN, StorageError):
        raise
    except NoAnswer as error:
        if _answers(path.parent):
            raise EntryError(errno.ETIMEDOUT, f"no answer for {READ_SECONDS:.0f} s", str(path)) from error
        raise Outage(f"{path.parent}: no answer for {READ_SECONDS:.0f} s; is the disk or mount gone?") from error
    except ValueError as error:  # a NUL in a name
        raise EntryError(errno.EINVAL, str(error), os.fspath(path)) from error
    except OSError as error:
        if error.errno not in SYSTEM and error.errno is not None and _answers(path.parent):
            raise EntryError(error.errno, reason(error), str(path)) from error
        raise Outage(f"{path}: {reason(error)}") from error


def _answers(folder: Path) -> bool:
    """Whether the file system of a folder still answers: a disk with bad sectors does, a lost mount does not."""

    def ask(beat: Beat) -> None:
        with suppress(*OWN):
            os.statvfs(folder)
            with os.scandir(folder) as items:
                next(items, None)

    try:
        within(READ_SECONDS, ask)
    except NoAnswer:
        return False
    except OSError as error:
        # A name that is too long or a loop of links is also an answer.
        return error.errno in (errno.ENAMETOOLONG, errno.ELOOP)
    except ValueError:
        return True
    return True
