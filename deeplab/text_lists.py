"""Text lists: one name a line, as any editor on any system writes them. All lists are read here."""

from __future__ import annotations

import codecs
import re

from deeplab.errors import UserError

MAX_LINE = 1 << 16  # characters; no path or key is longer, so a file with a longer line is not a list
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class ListError(UserError):
    """A text list cannot be read; the message names the line."""


def lines(data: bytes, place: str) -> list[tuple[int, str]]:
    """(line number from 1, stripped text) of the non-empty lines of `data`.

    UTF-8 with or without a byte order mark, or UTF-16 with one; lines end with LF, CR LF or CR. ListError for any other
    encoding, a NUL character or a line of over MAX_LINE characters; `place` names the list in its message.
    """
    encoding = "utf-16" if data.startswith(UTF16) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise ListError(f"{place}, line {number}: not a readable UTF-8 list ({error.reason})") from error
    numbered = []
    # Not splitlines(), which also splits at characters that names may hold, such as U+2028.
    for number, line in enumerate(re.split("\r\n|\n|\r", text), 1):
        if "\0" in line:
            raise ListError(f"{place}, line {number}: holds a NUL character; a text list has one name a line")
        if len(line) > MAX_LINE:
            raise ListError(f"{place}, line {number}: {len(line)} characters; up to {MAX_LINE} are accepted, one name a line")
        if stripped := line.strip():
            numbered.append((number, stripped))
    return numbered
