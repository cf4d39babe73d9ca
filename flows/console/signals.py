"""SIGTERM, Ctrl-C and a closed terminal as a request to stop: work saves its state first; a second signal ends it at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
EXIT_CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: 143, signal.SIGHUP: 129}


@contextmanager
def request() -> Iterator[Callable[[], int]]:
    """Yields a callable that returns 0, or once a signal has arrived its exit code."""
    codes: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if codes:
            raise KeyboardInterrupt
        codes.append(EXIT_CODES[signal.Signals(number)])

    # An ignored signal stays ignored, for `nohup`.
    handled = [number for number in EXIT_CODES if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in handled}
    try:
        yield lambda: codes[0] if codes else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
