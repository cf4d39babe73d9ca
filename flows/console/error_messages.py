"""How errors are shown: one line, and for an unexpected error the file that has the full text."""

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
KEPT = 20  # newest error files that are kept
SECRET_NAMES = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|_KEY|AUTH_STRING", re.IGNORECASE)
# user:password@ in a URL, and the parameters of a signed URL.
SECRET_TEXTS = re.compile(r"(?<=://)[^/\s@]+(?=@)|(?<=[?&])(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s]+", re.IGNORECASE)


def debugging() -> bool:
    """Whether the user asked for tracebacks, by --debug or DEEPLAB_DEBUG=1."""
    return os.environ.get(DEBUG, "") not in ("", "0")


def describe(error: BaseException) -> str:
    """An error in one line: the message of our own errors, place and reason for a file's, type and message of others."""
    return without_secrets(_of_a_place(error) or described(error, sys.maxsize))[:400]


def _of_a_place(error: BaseException) -> str:
    """What the system refused to do with a file or folder of this machine, for the user to change; empty for other errors."""
    if not isinstance(error, OSError) or not error.strerror or not isinstance(error.filename, str | bytes):
        return ""
    return f"{os.fsdecode(error.filename)}: cannot be read or written ({error.strerror})"


def without_secrets(text: str) -> str:
    """The text with *** in place of secrets: values of environment variables, passwords and signatures in URLs."""
    for name, value in os.environ.items():
        if SECRET_NAMES.search(name) and len(value) >= 6:
            text = text.replace(value, "***")
    return SECRET_TEXTS.sub(lambda match: f"{match[1] or ''}***", text)


def keep(error: BaseException) -> Path | None:
    """Write the full text of an error to a file that only this user may read; None if no folder can be written."""
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


def message(error: BaseException) -> str:
    """`describe`; for an unexpected error also the file that has the full text."""
    if isinstance(error, UserError) or _of_a_place(error):
        return describe(error)
    path = keep(error)
    return f"{describe(error)}; full text: {path}" if path else f"{describe(error)}; --debug prints the full text"


def report(error: BaseException) -> None:
    """Print an error on stderr: one line, or the traceback with --debug."""
    if debugging():
        traceback.print_exception(error)
    else:
        stderr.print("[red]error[/]:", escape(message(error)), soft_wrap=True)


def silence() -> None:
    """Show errors through `report` only: those of threads, too; what Python cannot raise goes to the file; no warnings."""
    show_unraisable, show_warning = sys.unraisablehook, warnings.showwarning

    def thread_failed(failure: threading.ExceptHookArgs) -> None:
        if failure.exc_value is not None and not isinstance(failure.exc_value, SystemExit):
            report(failure.exc_value)

    def cannot_raise(failure: sys.UnraisableHookArgs) -> None:
        if debugging():
            show_unraisable(failure)
        elif failure.exc_value is not None:
            keep(failure.exc_value)

    def warn(*arguments: Any, **options: Any) -> None:  # such as "coroutine ... was never awaited"
        if debugging() or sys.warnoptions:
            show_warning(*arguments, **options)

    threading.excepthook, sys.unraisablehook, warnings.showwarning = thread_failed, cannot_raise, warn


class OneLine(logging.Filter):
    """Log errors as one line, without the traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not debugging():
            with suppress(Exception):
                record.msg, record.args, record.exc_info, record.exc_text = message(error), (), None, None
        return True


def in_log(*names: str) -> None:
    """Log errors as one line in the loggers of these names."""
    for name in names:
        logger = logging.getLogger(name)
        if not any(isinstance(existing, OneLine) for existing in logger.filters):
            logger.addFilter(OneLine())
