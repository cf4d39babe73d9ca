"""Names from outside: what a model may be called, and how any name becomes a path below a folder.

A name that somebody else chose (in a card, an object's key, an archive's member) becomes a path only through this module.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote

from deeplab.errors import UserError

# Bytes of UTF-8. Percent-encoded they are up to 210; with `model=` and the digest that still fits a folder's name (255).
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
    """`name`, if a model may have it: it becomes part of labels, folder names and registry entries. Raises InvalidName."""
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
    """A model's default name: that of its folder. Raises InvalidName if a model may not have it."""
    try:
        return model_name(folder)
    except InvalidName as error:
        raise InvalidName(f"{error}; the folder's name cannot be the model's, so give one with --name") from error


def folder_of(label: str) -> str:
    """A folder's name for a model's label, percent-encoded as Hive, Spark and Delta's own writers do.

    Readers that take a partition's value from the folder instead of the log (Polars) decode it and get the label.
    """
    return quote(label, safe="@")


def stem(name: str) -> str:
    """A name without the extension of its last part: `a.b/c.d.jpg` -> `a.b/c.d`; `.hidden` and `plain` stay as they are."""
    folder, slash, last = name.rpartition("/")
    base, _, _ = last.rpartition(".")
    return f"{folder}{slash}{base if base.strip('.') else last}"


def leads_outside(name: str) -> bool:
    """Whether some program might resolve a relative path to something outside its folder."""
    return name.startswith("/") or "\\" in name or ".." in name.split("/")


def relative_path(name: str, room: int = 0) -> str:
    """Any `name` as a relative path on the local disk that stays below its folder.

    Valid parts stay unchanged. Empty parts, `.`, `..`, characters that a path cannot contain and parts over 255 bytes are
    replaced; a digest of the whole name then keeps the path unique. `room`: bytes that the last part leaves for a suffix.
    """
    parts = name.split("/")
    valid = [_valid_part(part, PART_BYTES - (room if part is parts[-1] else 0)) for part in parts]
    if valid == parts:
        return name
    digest = f"-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:DIGEST]}"
    base = stem(valid[-1])
    extension = valid[-1][len(base) :] if len(valid[-1]) - len(base) <= 10 else ""
    last = _cut(base, PART_BYTES - room - len(digest) - len(extension.encode(errors="surrogateescape"))) + digest + extension
    return "/".join([*(part for part in valid[:-1] if part != "_"), last])


def _valid_part(part: str, limit: int) -> str:
    if part in ("", ".", ".."):
        return "_"
    # Control characters in file names confuse terminals and scripts; surrogates stand for bytes that are not UTF-8.
    clean = re.sub(r"[\x00-\x1f\x7f]|[\ud800-\udc7f\udd00-\udfff]", "_", part)
    return _cut(clean, limit)


def _cut(text: str, limit: int) -> str:
    data = text.encode(errors="surrogateescape")
    return text if len(data) <= limit else data[:limit].decode(errors="ignore")
