"""Faults of an image, which become its error row, and faults of the system, which are retried and then fail the run.

Every reader raises one or the other. OWN are faults of one file, folder, shard or object in storage that answers. StorageError,
an error number in SYSTEM and a lack of memory are faults of the system.
"""

from __future__ import annotations

import errno
import os

from deeplab.errors import UserError


class StorageError(UserError, OSError):
    """A place cannot be reached, read or written, and a retry does not help; the message names it and what is accepted."""


class Outage(StorageError):
    """A store is down, overloaded or closed the connection: the same call may succeed later."""

    passing = True


class EntryError(OSError):
    """A file, folder, shard or object that cannot be read for a reason of its own. Arguments: errno, reason in one line, name."""


OWN = (EntryError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

# Error numbers of this process, this machine or the connection to the storage, and not of the file being read.
SYSTEM = frozenset(
    {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOLCK, errno.EAGAIN, errno.EINTR, errno.EBADF}
    | {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
    | {errno.ENOTCONN, errno.ESHUTDOWN, errno.EPIPE, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED}
    | {errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH}
)
MEMORY_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_fitting(size: int, name: str) -> None:
    """EntryError if `size` bytes do not fit into this machine's memory: a sparse file, a disk image."""
    if size > MEMORY_BYTES:
        raise EntryError(errno.EFBIG, f"it has {size} bytes, more than this machine's memory of {MEMORY_BYTES}", name)


def reason(error: OSError) -> str:
    """The reason of an error of OWN, in one line."""
    return " ".join(str(error.strerror or error or "no such object").split())
