"""One object, local or on S3, as a seekable file: how tar, zip and Parquet shards are opened."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from pipelines.storage import filesystems
from pipelines.storage.storage_errors import EntryError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHANGED = "the shard changed after it was listed; the next run lists it again"
AHEAD = 1 << 20  # least bytes per read


class ObjectFile(io.RawIOBase):
    """One object as a seekable file, of which only the requested ranges are read, waiting for a store that is down.

    Raises the errors of `read_versioned`, and EntryError if the object is no longer of `version`.
    """

    def __init__(self, uri: str, version: str) -> None:
        self.uri, self.version, self.place = uri, version, 0
        self.failure: OSError | None = None
        self.size = filesystems.outlast(lambda: filesystems.stat(uri)).size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        return self.place

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer)
        length = max(0, min(len(target), self.size - self.place))
        if length == 0:
            return 0
        try:
            data, version = filesystems.outlast(lambda: filesystems.read_range(self.uri, self.place, length))
            if version != self.version:
                raise EntryError(errno.ESTALE, CHANGED, self.uri)
        except OSError as error:
            self.failure = error
            raise
        target[: len(data)] = data
        self.place += len(data)
        return len(data)


@contextmanager
def open_object(uri: str, version: str) -> Iterator[io.BufferedReader]:
    """An object of a known version as a seekable file, read AHEAD bytes or more at a time. Raises ObjectFile's errors.

    Some libraries (zipfile) report such an error as damage: if the body raises after one, the original is raised.
    """
    source = ObjectFile(uri, version)
    try:
        stream: io.BufferedReader = io.BufferedReader(cast(io.FileIO, source), AHEAD)  # the type stub accepts no RawIOBase
        with stream:
            yield stream
    except Exception as error:
        if source.failure is None or source.failure is error:
            raise
        raise source.failure from error
