"""Calls into the system that may never return, made in threads that can be left behind."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
Beat = Callable[[], None]
Answers = queue.SimpleQueue[tuple[Any, BaseException | None]]


class NoAnswer(Exception):
    """A call made no progress for longer than it may."""


class _Helper:
    """A daemon thread that makes one call after the other."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[tuple[Callable[[], Any], Answers]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="local-files").start()

    def _work(self) -> None:
        while True:
            action, answers = self.calls.get()
            answer: tuple[Any, BaseException | None]
            try:
                answer = action(), None
            except BaseException as error:  # raised where the call is waited for
                answer = None, error
            _idle.append(self)
            answers.put(answer)
            del action, answers, answer  # a file's bytes are not kept until the next call


_idle: list[_Helper] = []
os.register_at_fork(after_in_child=_idle.clear)  # threads stay with the parent


def within(seconds: float, action: Callable[[Beat], T]) -> T:
    """What `action` returns or raises, made in another thread; it calls its argument wherever it makes progress.

    NoAnswer after `seconds` without progress. A thread that is stuck takes no new call until it is free, and holds up
    neither the caller nor the end of the process.
    """
    progress = [time.monotonic()]

    def beat() -> None:
        progress[0] = time.monotonic()

    answers: Answers = queue.SimpleQueue()
    try:
        helper = _idle.pop()
    except IndexError:
        helper = _Helper()
    helper.calls.put((lambda: action(beat), answers))
    while True:
        left = progress[0] + seconds - time.monotonic()
        try:
            result, error = answers.get(timeout=max(0.0, left))
        except queue.Empty:
            if progress[0] + seconds <= time.monotonic():
                raise NoAnswer from None
            continue
        if error is not None:
            raise error
        return result
