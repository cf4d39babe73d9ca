"""Many images in a row: read and decoded ahead of the network, in bounded memory."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np

from deeplab.segmentation.image_source import ImageLike, ImageSource, Opened, Unusable, decoded

# Decoded pixels that the network takes at a time (a single image may have more); two windows are in memory.
WINDOW_PIXELS = 64_000_000
PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class Loaded:
    """An image ready for the network; `pixels` is None if it is too large to decode whole, `error` if it can be used."""

    source: ImageSource
    opened: Opened | None = None
    pixels: np.ndarray | None = None
    error: Unusable | None = None


class Windows:
    """Groups of up to `most` decoded images, in order, while the executor's threads read and decode the next ones.

    If the iterable of images fails, iteration ends there, and `trouble` is its error.
    """

    def __init__(self, images: Iterable[ImageLike], threads: Executor, most: int, max_pixels: int) -> None:
        self.images, self.threads, self.most, self.max_pixels = iter(images), threads, most, max_pixels
        self.opening: deque[tuple[ImageSource, Future[Opened]]] = deque()
        self.trouble: Exception | None = None
        self.ended = False

    def __iter__(self) -> Iterator[list[Loaded]]:
        current = self._start()
        while current:
            following = self._start()
            yield [_finished(*entry) for entry in current]
            current = following

    def _read_ahead(self) -> None:
        while not self.ended and len(self.opening) < self.most:
            try:
                source = ImageSource(next(self.images))
            except StopIteration:
                self.ended = True
            except Exception as error:
                self.ended, self.trouble = True, error
            else:
                self.opening.append((source, self.threads.submit(source.open)))

    def _start(self) -> list[tuple[ImageSource, Future[Opened], Future[np.ndarray | None] | None]]:
        """Start to decode the next window."""
        window: list[tuple[ImageSource, Future[Opened], Future[np.ndarray | None] | None]] = []
        pixels = 0
        self._read_ahead()
        while self.opening and len(window) < self.most:
            source, opening = self.opening[0]
            decoding = None
            if opening.exception() is None:
                pixels += opening.result().pixel_count
                if window and pixels > WINDOW_PIXELS:
                    break
                decoding = self.threads.submit(decoded, opening.result(), self.max_pixels)
            self.opening.popleft()
            window.append((source, opening, decoding))
            self._read_ahead()
        return window


def _finished(source: ImageSource, opening: Future[Opened], decoding: Future[np.ndarray | None] | None) -> Loaded:
    try:
        opened = opening.result()
        assert decoding is not None
        return Loaded(source, opened, decoding.result())
    except Unusable as error:
        return Loaded(source, error=error)


class Progress:
    """A line about images done on standard error, at most twice a second; one that is overwritten on a terminal."""

    def __init__(self, images: object, shown: bool) -> None:
        self.total = len(images) if hasattr(images, "__len__") else None
        self.shown, self.done, self.written = shown, 0, -1
        self.began, self.due = time.monotonic(), 0.0

    def step(self) -> None:
        """One more image is done."""
        self.done += 1
        if self.shown and time.monotonic() >= self.due:
            self.due = time.monotonic() + PROGRESS_SECONDS
            self._write("\r" if sys.stderr.isatty() else "\n")

    def finish(self) -> None:
        if self.shown and (self.written != self.done or sys.stderr.isatty()):
            self._write("\n")

    def _write(self, end: str) -> None:
        self.written = self.done
        rate = self.done / max(time.monotonic() - self.began, 1e-9)
        of = f" of {self.total}" if self.total is not None else ""
        print(f"{self.done}{of} images, {rate:.1f} a second", end=end, file=sys.stderr, flush=True)
