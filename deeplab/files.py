"""Folders of named files, which data sets are read from and training writes to; object stores offer the same calls."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from deeplab import text_lists
from deeplab.errors import UserError

# Listing an archive skips folders that contain the first, and in other folders the files that the second names.
MARKER, MARKED_FILES = ".deeplab-output", ".deeplab-output-files"
MARKER_TEXT = b"Written by deeplab, which passes this folder over when it lists the images of an archive above it.\n"
# The name of a file that is being written, or was when its process died.
STAGED = re.compile(r"\..+\.\d+\.\d+\.tmp", re.DOTALL)


class Files(Protocol):
    """Names are relative, with forward slashes. `remote`: whether reading one is a request over a network."""

    remote: bool

    def read(self, name: str) -> bytes:
        """All bytes of a file. Raises FileNotFoundError or another OSError."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file, which appears complete or not at all. Raises OSError."""

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""

    def has(self, name: str) -> bool:
        """Whether there is such a file or folder."""

    def names(self, folder: str = "") -> list[str]:
        """Every file below a folder, sorted, named relative to it; empty if there is no such folder."""


class LocalFiles:
    """The files below one local folder, which need not exist yet."""

    remote = False

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def __str__(self) -> str:
        return str(self.root)

    def read(self, name: str) -> bytes:
        path = self.root / name
        if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return path.read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Write to a second name, then rename: if the process dies or the disk is full, the old file stays."""
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")  # matches STAGED
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
        paths = [os.path.join(parent, name) for parent, _, files in os.walk(top, followlinks=True) for name in files]
        return sorted(os.path.relpath(path, top).replace(os.sep, "/") for path in paths)


def as_files(place: str | Path | Files) -> Files:
    """LocalFiles for a local path; Files are returned as they are. UserError for a URI."""
    if isinstance(place, str | Path) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(place)):
        raise UserError(f"{place}: a folder of this machine is accepted; `deeplab train` and the model registry write to stores")
    return LocalFiles(place) if isinstance(place, str | Path) else place


def mark_output(place: Files, folder: str = "") -> bool:
    """Mark a folder as output before anything is written there, so that archive listings skip its pictures.

    Returns False, without marking it, if the folder already holds files, which may be someone else's. Raises OSError.
    """
    name = f"{folder}/{MARKER}" if folder else MARKER
    if place.has(name):
        return True
    if place.has(folder) and place.names(folder):
        return False
    place.write(name, MARKER_TEXT)
    return True


def mark_files(paths: Iterable[Path]) -> None:
    """Mark single pictures that were written into folders which also hold other files."""
    folders: dict[Path, set[str]] = {}
    for path in paths:
        folders.setdefault(path.parent, set()).add(path.name)
    for folder, names in folders.items():
        if not (folder / MARKER).exists():
            marked = names | marked_files(folder)
            LocalFiles(folder).write(MARKED_FILES, "".join(f"{name}\n" for name in sorted(marked)).encode())


def marked_files(folder: Path) -> set[str]:
    """The names of a folder's files that `mark_files` has marked; empty if its list is missing or damaged."""
    try:
        return {line for _, line in text_lists.lines((folder / MARKED_FILES).read_bytes(), str(folder))}
    except (OSError, text_lists.ListError):
        return set()
