"""From names to pixels, ahead of the network: bytes are read well in advance, and decoded pixels are bounded."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from deeplab.images import ImageError, decode, pixel_count
from pipelines import shards

READ_THREADS = 8
READ_TRIES = 4
# A window is what the network is given at a time: enough images to fill its batches, and no more pixels than this
# (one image may have more). Two windows are in memory, so an actor's decoded pixels take up to about 400 MB.
WINDOW = 16
WINDOW_PIXELS = 64_000_000


@dataclass(frozen=True)
class Loaded:
    """An image's encoded bytes and pixels (H x W x 3 uint8), or the error that it ends with; seconds that it took."""

    uri: str
    version: str
    error: str | None
    encoded: bytes
    pixels: np.ndarray | None
    read_seconds: float
    decode_seconds: float


def read(uri: str, expected: str) -> tuple[bytes, str, str | None]:
    """(bytes, version of those bytes, reason why not). A place that is gone or barred is a reason; all else raises.

    Other errors are the system's (a store that is down): they are tried again and then fail the block, so that an
    outage never turns into rows.
    """
    for attempt in range(READ_TRIES):
        try:
            return *shards.fetch(uri, expected), None
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
            return b"", expected, f"read: {error.strerror or 'no such object'}"
        except OSError:
            if attempt == READ_TRIES - 1:
                raise
            time.sleep(0.5 * 4**attempt)
    raise AssertionError("unreachable")


Read = tuple[bytes, str, str | None, float]  # bytes, version, error, seconds


class Loader:
    """Threads that read and decode one window of images while the caller works on the window before."""

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self.threads = ThreadPoolExecutor(READ_THREADS)

    def windows(
        self, images: Sequence[tuple[str, str]], decoding: Callable[[list[str]], None] = lambda uris: None
    ) -> Iterator[list[Loaded]]:
        """(uri, version) of images -> their windows, in order.

        `decoding` hears of the images that are being decoded or worked on (two windows at most) before they are.
        """
        waiting = iter(images)
        reads: deque[tuple[str, Future[Read]]] = deque()

        def start(held: list[str]) -> tuple[list[str], list[Future[Loaded]]]:
            """Have the next window decoded; `held` is the one that the caller is about to work on."""
            while len(reads) < 2 * WINDOW and (image := next(waiting, None)) is not None:
                reads.append((image[0], self.threads.submit(self._read, *image)))
            if reads:
                decoding(held + [uri for uri, _ in islice(reads, WINDOW)])
            uris: list[str] = []
            pending: list[Future[Loaded]] = []
            pixels = 0
            while reads and len(uris) < WINDOW:
                found = reads[0][1].result()
                pixels += pixel_count(found[0])
                if uris and pixels > WINDOW_PIXELS:
                    break
                uris.append(reads.popleft()[0])
                pending.append(self.threads.submit(self._decode, uris[-1], *found))
            return uris, pending

        uris, pending = start([])
        while pending:
            loaded = [future.result() for future in pending]
            uris, pending = start(uris)
            yield loaded

    def _read(self, uri: str, expected: str) -> Read:
        start = time.perf_counter()
        return *read(uri, expected), time.perf_counter() - start

    def _decode(self, uri: str, encoded: bytes, version: str, error: str | None, seconds: float) -> Loaded:
        start = time.perf_counter()
        pixels = None
        if error is None:
            try:
                pixels = decode(encoded, self.max_pixels)
            except ImageError as reason:
                error = f"decode: {reason}"
        return Loaded(uri, version, error, encoded, pixels, seconds, time.perf_counter() - start)
