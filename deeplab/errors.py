"""What all foreseen errors have in common, and how any error is said in one line."""

from __future__ import annotations

import re

COLOURS = re.compile(r"\x1b\[\d+m")


class UserError(Exception):
    """Trouble that a person can act on: the message alone says what was wrong, where, and what is accepted.

    `passing`: whether the same may go well a little later, as it was the system's trouble and not the input's.
    """

    passing = False


class ImageError(ValueError):
    """The bytes are not an image that is accepted here; the message is one line with the reason."""


def one_line(error: BaseException, length: int = 200) -> str:
    """What an error says, in one line of at most `length` characters and without colours; its class where it says nothing."""
    return " ".join(COLOURS.sub("", str(error)).split())[:length] or type(error).__name__


def described(error: BaseException, length: int = 400) -> str:
    """One line on any error: our own by what it says, another by its class as well."""
    text, kind = one_line(error, length), type(error).__name__
    return text if isinstance(error, UserError) or text == kind else f"{kind}: {text}"


def last_line(error: BaseException, without: tuple[str, ...] = ()) -> str:
    """Class and last line of an error whose text holds a traceback, less the lines that start with one of `without`."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(without)]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:500]
