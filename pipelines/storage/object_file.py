"""One object, local or on S3, as a file to seek in: how tar, zip and Parquet shards are opened."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.storage import filesystems
from pipelines.storage.storage_errors import EntryError

CHANGED = "the shard changed after it was listed; the next run lists it anew"
AHEAD = 1 << 20  # bytes that are read at least


class ObjectFile(io.RawIOBase):
    """One object as a file to seek in, of which only what is asked for is read; an outage is outlasted.

    Errors as `read_versioned`, and EntryError where the object is no longer of `version`.
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

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self.size - self.place))
        if length == 0:
            return 0
        try:
            data, version = filesystems.outlast(lambda: filesystems.read_range(self.uri, self.place, length))
            if version != self.version:
                raise EntryError(errno.ESTALE, CHANGED, self.uri)
        except OSError as error:
            self.failure = error
            raise
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)


@contextmanager
def open_object(uri: str, version: str) -> Iterator[io.BufferedReader]:
    """An object of a known version as a file to seek in, read AHEAD bytes or more at a time; errors as ObjectFile's.

    Libraries take some of these for damage (zipfile does): where the body raises after one, it is the one that is raised.
    """
    source = ObjectFile(uri, version)
    raw: Any = source  # of a class that BufferedReader's types do not foresee
    try:
        with io.BufferedReader(raw, AHEAD) as stream:
            yield stream
    except Exception as error:
        if source.failure is None or source.failure is error:
            raise
        raise source.failure from error
