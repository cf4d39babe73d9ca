"""What a person sees of an error that nobody foresaw: one line, and where the whole text lies."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.markup import escape

from deeplab.errors import UserError, described
from flows.console import environment
from flows.console.terminal import stderr

DEBUG = "DEEPLAB_DEBUG"
KEPT = 20  # newest texts that stay
SECRET_NAMES = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|_KEY|AUTH_STRING", re.IGNORECASE)
# user:password@ in an address, and what signs one.
SECRET_TEXTS = re.compile(r"(?<=://)[^/\s@]+(?=@)|(?<=[?&])(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s]+", re.IGNORECASE)


def debugging() -> bool:
    """Whether a person asked for tracebacks, by --debug or DEEPLAB_DEBUG=1."""
    return os.environ.get(DEBUG, "") not in ("", "0")


def describe(error: BaseException) -> str:
    """An error in one line: our own by what it says, another by its kind as well."""
    return without_secrets(described(error, sys.maxsize))[:400]


def without_secrets(text: str) -> str:
    """The text with *** for what only this process should know: values of the environment, passwords in addresses."""
    for name, value in os.environ.items():
        if SECRET_NAMES.search(name) and len(value) >= 6:
            text = text.replace(value, "***")
    return SECRET_TEXTS.sub(lambda match: f"{match[1] or ''}***", text)


def keep(error: BaseException) -> Path | None:
    """Write the whole text of an error where only this user reads it; None where no folder can be written."""
    try:
        state = os.environ.get("XDG_STATE_HOME")
        folder = (Path(state) if state else Path.home() / ".local" / "state") / "deeplab"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            folder = environment.own_folder()
        path = folder / f"error-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}.log"
        text = without_secrets("".join(traceback.format_exception(error)))
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8", errors="replace") as stream:
            stream.write(f"{text}\n")
        for old in sorted(folder.glob("error-*.log"))[:-KEPT]:
            old.unlink(missing_ok=True)
    except (OSError, RuntimeError):
        return None
    return path


def told(error: BaseException) -> str:
    """`describe`, and for an error that nobody foresaw where its whole text lies."""
    if isinstance(error, UserError):
        return describe(error)
    path = keep(error)
    return f"{describe(error)}; the whole text: {path}" if path else f"{describe(error)}; --debug prints the whole text"


def report(error: BaseException) -> None:
    """Say on stderr what went wrong; with --debug by a traceback."""
    if debugging():
        traceback.print_exception(error)
    else:
        stderr.print("[red]error[/]:", escape(told(error)), soft_wrap=True)


def silence() -> None:
    """Let nothing but `report` speak of errors: not threads, not what Python cannot raise, no library's warnings."""
    show_unraisable, show_warning = sys.unraisablehook, warnings.showwarning

    def of_thread(failure: threading.ExceptHookArgs) -> None:
        if failure.exc_value is not None and not isinstance(failure.exc_value, SystemExit):
            report(failure.exc_value)

    def of_nobody(failure: sys.UnraisableHookArgs) -> None:
        if debugging():
            show_unraisable(failure)
        elif failure.exc_value is not None:
            keep(failure.exc_value)

    def warn(*arguments: Any, **more: Any) -> None:  # such as "coroutine ... was never awaited"
        if debugging() or sys.warnoptions:
            show_warning(*arguments, **more)

    threading.excepthook, sys.unraisablehook, warnings.showwarning = of_thread, of_nobody, warn


class OneLine(logging.Filter):
    """A log record of an error without its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not debugging():
            with suppress(Exception):
                record.msg, record.args, record.exc_info, record.exc_text = told(error), (), None, None
        return True


def in_log(*names: str) -> None:
    """Errors take one line in these logs."""
    for name in names:
        logger = logging.getLogger(name)
        if not any(isinstance(known, OneLine) for known in logger.filters):
            logger.addFilter(OneLine())
