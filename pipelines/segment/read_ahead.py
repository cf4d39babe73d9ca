"""Reading and decoding images ahead of the network, in bounded memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from deeplab.errors import ImageError, described
from deeplab.images.decoding import MAX_PIXELS, Header, decode, header
from pipelines.archive.image_bytes import read
from pipelines.storage import filesystems, s3

READ_THREADS = 8
# The images that the network takes at a time: enough to fill its batches, and no more pixels than this (a single image may have
# more). Two windows are in memory, so the decoded pixels of an actor take up to about 400 MB.
WINDOW = 16
WINDOW_PIXELS = 64_000_000
# Encoded bytes in memory, of two windows and of images read ahead. An image with more bytes is read when no other is in memory.
READ_BYTES = 200_000_000


@dataclass(frozen=True)
class Loaded:
    """An image's encoded bytes and pixels (H x W x 3 uint8), or its error.

    `version`: as listed; `read_version`: that of the bytes, if it differs. Without pixels and error, the image is too large to
    decode whole.
    """

    uri: str
    version: str
    read_version: str | None
    error: str | None
    encoded: bytes
    header: Header | None
    pixels: np.ndarray | None
    read_seconds: float
    decode_seconds: float


Read = tuple[bytes, str, str | None, float]  # bytes, version, error, seconds
Reader = Callable[[str, str], tuple[bytes, str, str | None]]  # uri, expected version -> bytes, version, error


class Loader:
    """Threads that read and decode one window of images while the caller works on the previous one.

    Images of more than `large_pixels` are not decoded; images of more than `max_pixels` get an error. `read`: what
    `image_bytes.read` does for archives.
    """

    def __init__(self, max_pixels: int, large_pixels: int = MAX_PIXELS, read: Reader = read) -> None:
        self.max_pixels, self.large_pixels, self.read = max_pixels, large_pixels, read
        self.threads = ThreadPoolExecutor(READ_THREADS)

    def windows(
        self, images: Sequence[tuple[str, str, int]], decoding: Callable[[list[str]], None] = lambda uris: None
    ) -> Iterator[list[Loaded]]:
        """(uri, version, bytes) of images -> their windows, in order. Clear a window to free its memory for the next.

        `decoding` gets the images about to be decoded and those that the caller works on: at most two windows.
        """
        if images and filesystems.is_s3(images[0][0]):
            s3.client()  # takes a second in a new process, which would count as reading in all threads
        waiting = deque(images)
        reads: deque[tuple[str, str, int, Future[Read]]] = deque()
        current: dict[str, int] = {}  # bytes by image, of the window that the caller is about to work on

        def start() -> tuple[dict[str, int], list[Future[Loaded]]]:
            """Start to decode the next window: the encoded bytes of its images by uri, and their futures."""
            total = sum(current.values()) + sum(size for _, _, size, _ in reads)
            while waiting and len(reads) < 2 * WINDOW and (total + waiting[0][2] <= READ_BYTES or not total):
                uri, version, size = waiting.popleft()
                reads.append((uri, version, size, self.threads.submit(self._read, uri, version)))
                total += size
            if reads:
                decoding([*current, *(uri for uri, _, _, _ in islice(reads, WINDOW))])
            sizes: dict[str, int] = {}
            pending: list[Future[Loaded]] = []
            pixels = 0
            while reads and len(sizes) < WINDOW:
                uri, version, size, read_future = reads[0]
                head = header(read_future.result()[0])
                pixels += head.pixels if head else 0
                if sizes and pixels > WINDOW_PIXELS:
                    break
                reads.popleft()
                sizes[uri] = size
                pending.append(self.threads.submit(self._decode, uri, version, head, *read_future.result()))
            return sizes, pending

        sizes, pending = start()
        while pending:
            loaded = [future.result() for future in pending]
            current = sizes
            sizes, pending = start()
            yield loaded
            if not pending:  # the end, or the next image needs the memory of the window just finished
                current = {}
                sizes, pending = start()

    def _read(self, uri: str, expected: str) -> Read:
        start = time.perf_counter()
        return *self.read(uri, expected), time.perf_counter() - start

    def _decode(
        self, uri: str, version: str, head: Header | None, encoded: bytes, read_version: str, error: str | None, seconds: float
    ) -> Loaded:
        start = time.perf_counter()
        pixels = None
        if error is None and head is not None and head.pixels > self.max_pixels:
            size = f"{head.width} x {head.height} is {head.pixels:,} pixels"
            error = f"decode: {size}, over the limit of {self.max_pixels:,} (--max-pixels raises it)"
        if error is None and (head is None or head.pixels <= self.large_pixels):
            try:
                pixels = decode(encoded, self.max_pixels)
            except ImageError as reason:
                error = f"decode: {reason}"
            except MemoryError:
                raise
            except Exception as unforeseen:  # from a decoder; raised, it would stop every run at this image
                error = f"decode: {described(unforeseen, 200)}"
        changed = read_version if read_version != version else None
        return Loaded(uri, version, changed, error, encoded, head, pixels, seconds, time.perf_counter() - start)
