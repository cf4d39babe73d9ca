"""A place with named files: where data sets are read and training writes. Object stores join by the same calls."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from deeplab import text_lists

# What lists an archive passes over: a folder with the first, and the files of a folder that the second names.
MARKER, MARKED_FILES = ".deeplab-output", ".deeplab-output-files"
MARKER_TEXT = b"Written by deeplab, which passes this folder over when it lists the images of an archive above it.\n"
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
        path = self.root / name
        if path.exists() and not path.is_file():  # opening a pipe would wait for somebody to write to it
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return path.read_bytes()

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


def mark_output(place: Files, folder: str = "") -> bool:
    """Mark a folder as ours, before anything is written there, so that its pictures are not taken for an archive's.

    False, and no mark, where it holds something already that may be someone else's. OSError where it cannot be written.
    """
    name = f"{folder}/{MARKER}" if folder else MARKER
    if place.has(name):
        return True
    if place.has(folder) and place.names(folder):
        return False
    place.write(name, MARKER_TEXT)
    return True


def mark_files(paths: Iterable[Path]) -> None:
    """Mark pictures that we wrote on disk among files of others."""
    folders: dict[Path, set[str]] = {}
    for path in paths:
        folders.setdefault(path.parent, set()).add(path.name)
    for folder, names in folders.items():
        if not (folder / MARKER).exists():
            marked = names | marked_files(folder)
            LocalFiles(folder).write(MARKED_FILES, "".join(f"{name}\n" for name in sorted(marked)).encode())


def marked_files(folder: Path) -> set[str]:
    """The names of a folder's files that `mark_files` has marked; none where the mark is gone or damaged."""
    try:
        return {line for _, line in text_lists.lines((folder / MARKED_FILES).read_bytes(), str(folder))}
    except (OSError, text_lists.ListError):
        return set()
