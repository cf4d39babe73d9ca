"""`deeplab ...` through its entry point in this process: an import less of some seconds for each command of a test."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from flows import cli
from flows.console import signals

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def deeplab(*arguments: object) -> Done:
    """Run a command as if it were typed in the checkout's folder. This process stays as it was, whatever the command sets."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with unchanged(), chdir(ROOT), redirect_stdout(out), redirect_stderr(err):
        sys.argv = ["deeplab", *map(str, arguments)]
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


@contextmanager
def unchanged() -> Iterator[None]:
    """Arguments, variables, signal handlers and what speaks of errors are as before once the body is over."""
    handlers = {number: signal.getsignal(number) for number in signals.EXIT_CODES}
    variables, argv = dict(os.environ), sys.argv
    hooks = threading.excepthook, sys.unraisablehook, warnings.showwarning
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook, warnings.showwarning = hooks
        sys.argv = argv
        os.environ.clear()
        os.environ.update(variables)
        for number, handler in handlers.items():
            signal.signal(number, handler)
