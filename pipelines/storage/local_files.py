"""Local files and folders that may be anything: opened without waiting, read under a deadline, their faults told from the disk's.

A pipe, socket or device is never opened. What makes no progress for READ_SECONDS is given up.
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

READ_SECONDS = 30.0  # without progress; S3 has the same
PIECE = 8 << 20  # the most bytes that are asked for at a time
BATCH = 256  # entries of a folder that are looked at in one call
SMALL = 64 << 10  # and of a file that says it is empty, as those of /proc do
KINDS = (
    (modes.S_ISDIR, "a folder"),
    (modes.S_ISFIFO, "a named pipe"),
    (modes.S_ISSOCK, "a socket"),
    (modes.S_ISCHR, "a device"),
    (modes.S_ISBLK, "a device"),
)
T = TypeVar("T")


def stat(path: Path) -> os.stat_result:
    """The state of a regular file, behind a link too. Raises an error of `storage_errors.OWN`, or StorageError."""
    return _judged(path, lambda beat: _regular(path, os.stat(path)))


def read(path: Path, start: int = 0, length: int | None = None) -> tuple[bytes, os.stat_result]:
    """`length` bytes of a regular file from `start` (fewer at its end), or all, and its state before the first was read.

    Raises an error of `storage_errors.OWN`, or StorageError. Memory: the bytes, once.
    """

    def whole(beat: Beat) -> tuple[bytes, os.stat_result]:
        _regular(path, os.stat(path))  # first, as opening a device may do something to it
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            before = _regular(path, os.fstat(descriptor))  # what is open may be another than what was looked at
            if length is None:
                require_fitting(before.st_size, str(path))
            data = io.BytesIO()
            while length is None or data.tell() < length:
                here = start + data.tell()
                asked = length - data.tell() if length is not None else max(before.st_size - here + 1, SMALL)
                piece = os.pread(descriptor, min(PIECE, asked), here)
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
    """What a folder holds by a name. `state`: of a regular file, behind a link too; None for anything else that is no
    folder, and for what cannot be looked at. `folder`: it is one, or a link to one (`link`)."""

    name: str
    state: os.stat_result | None
    folder: bool
    link: bool


def names(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, sorted, hidden names left out. Raises an error of `storage_errors.OWN`, or StorageError."""

    def scan(beat: Beat) -> list[os.DirEntry[str]]:
        found = []
        with os.scandir(folder) as items:
            for item in items:
                beat()
                if not item.name.startswith("."):
                    found.append(item)
        return sorted(found, key=lambda item: item.name)

    return _judged(folder, scan)


def entries(items: list[os.DirEntry[str]]) -> Iterator[Entry]:
    """The entries behind `names`, looked at some at a time. StorageError for what is the system's."""
    done = 0
    while done < len(items):
        some: list[Entry] = []

        def look(beat: Beat, batch: list[os.DirEntry[str]] = items[done : done + BATCH], into: list[Entry] = some) -> None:
            for item in batch:
                into.append(_entry(item))
                beat()

        stuck = False
        try:
            within(READ_SECONDS, look)
        except NoAnswer:  # those behind it may be well
            stuck = True
        some = some[:BATCH]
        done += len(some)
        yield from some
        if stuck and done < len(items):
            yield Entry(items[done].name, None, folder=False, link=False)
            done += 1


def _entry(item: os.DirEntry[str]) -> Entry:
    try:
        if item.is_dir(follow_symlinks=False):
            return Entry(item.name, None, folder=True, link=False)
        state = item.stat()
    except (OSError, ValueError) as error:  # a dangling link, a loop of links, gone since: whoever reads it will say
        if isinstance(error, OSError) and error.errno in SYSTEM:
            raise Outage(f"{item.path}: {error.strerror}") from error
        return Entry(item.name, None, folder=False, link=False)
    if modes.S_ISDIR(state.st_mode):
        return Entry(item.name, None, folder=True, link=True)
    return Entry(item.name, state if modes.S_ISREG(state.st_mode) else None, folder=False, link=False)


def _regular(path: Path, state: os.stat_result) -> os.stat_result:
    """`state` of a regular file; else the error that says what it is, or why a folder cannot be listed."""
    if modes.S_ISREG(state.st_mode):
        return state
    if modes.S_ISDIR(state.st_mode):
        os.scandir(path).close()
    kind = next((name for test, name in KINDS if test(state.st_mode)), "of an unknown kind")
    raise EntryError(errno.EINVAL, f"it is {kind}, not a file", str(path))


def _judged(path: Path, action: Callable[[Beat], T]) -> T:
    """What `action` returns for a path. Its errors are the path's own (`storage_errors.OWN`) where the folder around it answers,
    and StorageError where not, or where they are the system's by their number."""
    try:
        return within(READ_SECONDS, action)
    except (*OWN, StorageError):
        raise
    except NoAnswer as error:
        if _answers(path.parent):
            raise EntryError(errno.ETIMEDOUT, f"no answer for {READ_SECONDS:.0f} s", str(path)) from error
        raise Outage(f"{path.parent}: no answer for {READ_SECONDS:.0f} s; is the disk or mount away?") from error
    except ValueError as error:  # a NUL in a name
        raise EntryError(errno.EINVAL, str(error), os.fspath(path)) from error
    except OSError as error:
        if error.errno not in SYSTEM and error.errno is not None and _answers(path.parent):
            raise EntryError(error.errno, reason(error), str(path)) from error
        raise Outage(f"{path}: {reason(error)}") from error


def _answers(folder: Path) -> bool:
    """Whether the file system of a folder still answers: a disk with bad sectors does, a mount that is away does not."""

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
        # A name that is too long or a loop of links is an answer, too.
        return error.errno in (errno.ENAMETOOLONG, errno.ELOOP)
    except ValueError:
        return True
    return True
