"""The base class of all foreseen errors, and any error as one line of text; counted things in a sentence."""

from __future__ import annotations

import re

COLOURS = re.compile(r"\x1b\[\d+m")


class UserError(Exception):
    """An error that the user can act on: the message alone says what was wrong, where, and what is accepted.

    `passing`: whether the same call may succeed a little later, because the system was at fault and not the input.
    """

    passing = False


class ImageError(ValueError):
    """The bytes are not an accepted image; the message is one line with the reason."""


def counted(number: int, one: str, more: str | None = None) -> str:
    """A number with its noun: 1 file, 2,000 files. `more`: the plural, if it is not the singular with an s."""
    return f"{number:,} {one if number == 1 else more or f'{one}s'}"


def one_line(error: BaseException, length: int = 200) -> str:
    """The message of an error in one line of at most `length` characters, without colour codes; its class if it has none."""
    return " ".join(COLOURS.sub("", str(error)).split())[:length] or type(error).__name__


def described(error: BaseException, length: int = 400) -> str:
    """One line for any error: the message of our own errors, the class and message of all others."""
    text, kind = one_line(error, length), type(error).__name__
    return text if isinstance(error, UserError) or text == kind else f"{kind}: {text}"


def last_line(error: BaseException, skipped: tuple[str, ...] = ()) -> str:
    """Class and last line of an error whose text contains a traceback; lines that start with one of `skipped` do not count."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(skipped)]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:500]
