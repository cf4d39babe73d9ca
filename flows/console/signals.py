"""SIGTERM, Ctrl-C and a closed terminal as a request: work that can save itself does so, and a second signal ends it at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
EXIT_CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: 143, signal.SIGHUP: 129}


@contextmanager
def request() -> Iterator[Callable[[], int]]:
    """In the body, the callable that is yielded says 0, or the exit code once a signal has come."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(EXIT_CODES[signal.Signals(number)])

    # What is ignored stays ignored, as `nohup` wants it.
    heeded = [number for number in EXIT_CODES if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heeded}
    try:
        yield lambda: asked[0] if asked else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
