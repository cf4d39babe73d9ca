"""System calls that may never return, in threads that can be abandoned."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

T = TypeVar("T")
Beat = Callable[[], None]


class NoAnswer(Exception):
    """A call made no progress for too long."""


class _Helper:
    """A daemon thread that runs one call after another."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="local-files").start()

    def _work(self) -> None:
        while True:
            call = self.calls.get()
            call()
            del call  # frees a file's bytes before the next call


_idle: list[_Helper] = []
os.register_at_fork(after_in_child=_idle.clear)  # threads stay with the parent


def within(seconds: float, action: Callable[[Beat], T]) -> T:
    """The result of `action`, run in another thread; it calls its argument whenever it makes progress.

    Raises its exception, or NoAnswer after `seconds` without progress. A stuck thread takes no further call until it is free, and
    delays neither the caller nor the end of the process.
    """
    progress = [time.monotonic()]

    def beat() -> None:
        progress[0] = time.monotonic()

    answer: Future[T] = Future()
    try:
        helper = _idle.pop()
    except IndexError:
        helper = _Helper()
    helper.calls.put(partial(_call, lambda: action(beat), answer, helper))
    while True:
        try:
            answer.exception(timeout=max(0.0, progress[0] + seconds - time.monotonic()))
        except TimeoutError:
            if progress[0] + seconds <= time.monotonic():
                raise NoAnswer from None
        else:
            return answer.result()


def _call(action: Callable[[], T], answer: Future[T], helper: _Helper) -> None:
    """Run `action` in the thread of `helper`, which is free again before the caller gets the answer."""
    try:
        result = action()
    except BaseException as error:
        _idle.append(helper)
        answer.set_exception(error)
        del answer  # which the exception's traceback would keep alive
    else:
        _idle.append(helper)
        answer.set_result(result)
