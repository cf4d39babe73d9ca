"""Text lists: one name a line, as any editor on any system writes them. All lists of the project are read here."""

from __future__ import annotations

import codecs
import re

from deeplab.errors import UserError

# No path or key is longer; what has such a line is no list.
MAX_LINE = 1 << 16  # a longer line is no name, and the file no list
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class ListError(UserError):
    """A text list cannot be read; the message names the line."""


def lines(data: bytes, place: str) -> list[tuple[int, str]]:
    """(line number from 1, text without blanks around it) of the lines of `data` that are not empty.

    UTF-8 with or without a byte order mark, or UTF-16 with one; lines end with LF, CR LF or CR. `place` names the list in
    the ListError that anything else, a NUL character or a line of over MAX_LINE characters ends in.
    """
    encoding = "utf-16" if data.startswith(UTF16) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise ListError(f"{place}, line {number}: not a readable UTF-8 list ({error.reason})") from error
    found = []
    # Not splitlines(), which also splits at characters that names may hold, such as U+2028.
    for number, line in enumerate(re.split("\r\n|\n|\r", text), 1):
        if "\0" in line:
            raise ListError(f"{place}, line {number}: holds a NUL character; a text list has one name a line")
        if len(line) > MAX_LINE:
            raise ListError(f"{place}, line {number}: {len(line)} characters; up to {MAX_LINE} are accepted, one name a line")
        if stripped := line.strip():
            found.append((number, stripped))
    return found
