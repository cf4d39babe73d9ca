"""Whose fault an error is: the image's own, which becomes its row, or the system's, which is tried again and fails the run.

StorageError, an error number in SYSTEM, and no memory are the system's. OWN are faults of one file, folder, shard or object
while the storage that holds it answers. Every reader raises one or the other.
"""

from __future__ import annotations

import errno
import os

from deeplab.errors import UserError


class StorageError(UserError, OSError):
    """A place cannot be reached, read or written, and stays so; the message names it and what is accepted."""


class Outage(StorageError):
    """A store is away, overloaded or broke off: the same call may go well later."""

    passing = True


class EntryError(OSError):
    """A file, folder, shard or object that cannot be read for a reason of its own, which is `strerror`.

    Made with (error number, reason in one line, name).
    """


OWN = (EntryError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

# What an error says of this process, this machine or the way to the storage, and not of the file that met it.
SYSTEM = frozenset(
    {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOLCK, errno.EAGAIN, errno.EINTR, errno.EBADF}
    | {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
    | {errno.ENOTCONN, errno.ESHUTDOWN, errno.EPIPE, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED}
    | {errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH}
)
MEMORY_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_fitting(size: int, name: str) -> None:
    """EntryError where `size` bytes, read whole, are more than this machine's memory: a sparse file, a disk image."""
    if size > MEMORY_BYTES:
        raise EntryError(errno.EFBIG, f"it has {size} bytes, more than this machine's memory of {MEMORY_BYTES}", name)


def reason(error: OSError) -> str:
    """The words of an error of OWN, in one line."""
    return " ".join(str(error.strerror or error or "no such object").split())
