"""Names that come from outside: what a model may be called, and how any name becomes a path below a folder.

Nothing that somebody else chose (a card, an object's key, an archive member) becomes a path but through here.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote

from deeplab.errors import UserError

# Bytes of UTF-8. Percent-encoded these are 210, and with `model=` and the digest still one folder's name (255).
MODEL_NAME_BYTES = 70
MODEL_NAME_RULE = (
    f"up to {MODEL_NAME_BYTES} bytes of printable characters are accepted, without / \\ @, a dot in front, and spaces at the ends"
)
ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")  # of a model in a registry
PART_BYTES = 255  # of one part of a path, on every file system in use
DIGEST = 10


class InvalidName(UserError, ValueError):
    """A name cannot be used; the message says what is accepted."""


def model_name(name: object) -> str:
    """`name` if a model may be called so: it becomes part of a label, of a folder's name and of a registry's entry. InvalidName."""
    if (
        not isinstance(name, str)
        or not name
        or not name.isprintable()
        or any(character in name for character in "/\\@")
        or name.startswith(".")
        or name != name.strip()
        or len(name.encode()) > MODEL_NAME_BYTES
    ):
        raise InvalidName(f"a model cannot be called {name!r}: {MODEL_NAME_RULE}")
    return name


def name_after(folder: str) -> str:
    """The model's name where nobody gave one: its folder's. InvalidName where that is none."""
    try:
        return model_name(folder)
    except InvalidName as error:
        raise InvalidName(f"{error}; the folder's name cannot be the model's, so give one with --name") from error


def folder_of(label: str) -> str:
    """A folder's name for a model's label, percent-encoded as Hive, Spark and Delta's own writers do.

    Readers that take a partition's value from the folder and not from the log (Polars) decode it, and get the label.
    """
    return quote(label, safe="@")


def stem(name: str) -> str:
    """A name without the extension of its last part: `a.b/c.d.jpg` -> `a.b/c.d`; `.hidden` and `plain` stay as they are."""
    folder, slash, last = name.rpartition("/")
    base, _, _ = last.rpartition(".")
    return f"{folder}{slash}{base if base.strip('.') else last}"


def leads_outside(name: str) -> bool:
    """Whether a relative path names, as some program might read it, something that is not below its folder."""
    return name.startswith("/") or "\\" in name or ".." in name.split("/")


def relative_path(name: str, room: int = 0) -> str:
    """`name` as a relative path that stays below its folder, whatever is in it, for a file of the local disk.

    Parts that are fit for a path stay as they are. Empty parts, `.` and `..`, characters that a path cannot hold and parts
    over 255 bytes (`room` bytes less for the last, to be appended to) are replaced, and a digest of the whole name keeps
    the result apart from every other.
    """
    parts = name.split("/")
    fit = [_fit(part, PART_BYTES - (room if part is parts[-1] else 0)) for part in parts]
    if fit == parts:
        return name
    mark = f"-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:DIGEST]}"
    base = stem(fit[-1])
    extension = fit[-1][len(base) :] if len(fit[-1]) - len(base) <= 10 else ""
    last = _cut(base, PART_BYTES - room - len(mark) - len(extension.encode(errors="surrogateescape"))) + mark + extension
    return "/".join([*(part for part in fit[:-1] if part != "_"), last])


def _fit(part: str, limit: int) -> str:
    if part in ("", ".", ".."):
        return "_"
    # Control characters in a file's name confuse terminals and scripts; surrogates stand for the bytes of names that are no UTF-8.
    clean = re.sub(r"[\x00-\x1f\x7f]|[\ud800-\udc7f\udd00-\udfff]", "_", part)
    return _cut(clean, limit)


def _cut(text: str, limit: int) -> str:
    data = text.encode(errors="surrogateescape")
    return text if len(data) <= limit else data[:limit].decode(errors="ignore")
