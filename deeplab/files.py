"""A place with named files: where data sets are read and training writes. Object stores join by the same calls."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Protocol

# A file that is being written, or that a killed process left.
STAGED = re.compile(r"\..+\.\d+\.\d+\.tmp", re.DOTALL)


class Files(Protocol):
    """Names are relative, with forward slashes. `remote`: whether reading one is a request over a network."""

    remote: bool

    def read(self, name: str) -> bytes:
        """All bytes. FileNotFoundError or another OSError where that fails."""

    def write(self, name: str, data: bytes) -> None:
        """Write so that the file appears complete or not at all. OSError where that fails."""

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""

    def has(self, name: str) -> bool:
        """Whether there is such a file or folder."""

    def names(self, folder: str = "") -> list[str]:
        """Every file below a folder, sorted, named relative to it; none where there is no such folder."""


class LocalFiles:
    """The files below one local folder, which need not exist yet."""

    remote = False

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def __str__(self) -> str:
        return str(self.root)

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """To a second name, then a rename, so that a kill or a full disk leaves what was there before."""
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")  # as STAGED says
        try:
            with open(staging, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(staging, target)
        finally:
            staging.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        return (self.root / name).exists()

    def names(self, folder: str = "") -> list[str]:
        top = self.root / folder
        found = []
        for path, _, files in os.walk(top, followlinks=True):
            found += [os.path.relpath(os.path.join(path, name), top).replace(os.sep, "/") for name in files]
        return sorted(found)


def as_files(place: str | Path | Files) -> Files:
    """A local path as LocalFiles; any other place as it is."""
    return LocalFiles(place) if isinstance(place, str | Path) else place
