"""From names to pixels, ahead of the network: bytes are read well in advance, and decoded pixels are bounded."""

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
# A window is what the network is given at a time: enough images to fill its batches, and no more pixels than this
# (one image may have more). Two windows are in memory, so an actor's decoded pixels take up to about 400 MB.
WINDOW = 16
WINDOW_PIXELS = 64_000_000
# Encoded bytes in memory, of two windows and of what is read ahead. An image with more is read when there is no other.
READ_BYTES = 200_000_000


@dataclass(frozen=True)
class Loaded:
    """An image's encoded bytes and pixels (H x W x 3 uint8), or the error that it ends with; seconds that it took.

    `version` is the one that was listed, `read_version` that of the bytes where it is another. Without pixels or error the
    image is too large to be decoded whole.
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


class Loader:
    """Threads that read and decode one window of images while the caller works on the window before.

    Images of more than `large_pixels` are not decoded, and those of more than `max_pixels` end with an error.
    """

    def __init__(self, max_pixels: int, large_pixels: int = MAX_PIXELS) -> None:
        self.max_pixels, self.large_pixels = max_pixels, large_pixels
        self.threads = ThreadPoolExecutor(READ_THREADS)

    def windows(
        self, images: Sequence[tuple[str, str, int]], decoding: Callable[[list[str]], None] = lambda uris: None
    ) -> Iterator[list[Loaded]]:
        """(uri, version, bytes) of images -> their windows, in order; clear one to have its memory used for the next.

        `decoding` hears of the images that are being decoded or worked on (two windows at most) before they are.
        """
        if images and filesystems.is_s3(images[0][0]):
            s3.client()  # takes a second in a new process, in which all threads would seem to read
        waiting = deque(images)
        reads: deque[tuple[str, str, int, Future[Read]]] = deque()
        held: dict[str, int] = {}  # bytes of the window that the caller is about to work on

        def start() -> tuple[dict[str, int], list[Future[Loaded]]]:
            """Have the next window decoded: bytes of its images, and what comes of them."""
            total = sum(held.values()) + sum(size for _, _, size, _ in reads)
            while waiting and len(reads) < 2 * WINDOW and (total + waiting[0][2] <= READ_BYTES or not total):
                uri, version, size = waiting.popleft()
                reads.append((uri, version, size, self.threads.submit(self._read, uri, version)))
                total += size
            if reads:
                decoding([*held, *(uri for uri, _, _, _ in islice(reads, WINDOW))])
            sizes: dict[str, int] = {}
            pending: list[Future[Loaded]] = []
            pixels = 0
            while reads and len(sizes) < WINDOW:
                uri, version, size, found = reads[0]
                told = header(found.result()[0])
                pixels += told.pixels if told else 0
                if sizes and pixels > WINDOW_PIXELS:
                    break
                reads.popleft()
                sizes[uri] = size
                pending.append(self.threads.submit(self._decode, uri, version, told, *found.result()))
            return sizes, pending

        sizes, pending = start()
        while pending:
            loaded = [future.result() for future in pending]
            held = sizes
            sizes, pending = start()
            yield loaded
            if not pending:  # the end, or an image that takes the memory of the window that is done now
                held = {}
                sizes, pending = start()

    def _read(self, uri: str, expected: str) -> Read:
        start = time.perf_counter()
        return *read(uri, expected), time.perf_counter() - start

    def _decode(
        self, uri: str, version: str, told: Header | None, encoded: bytes, read_version: str, error: str | None, seconds: float
    ) -> Loaded:
        start = time.perf_counter()
        pixels = None
        if error is None and told is not None and told.pixels > self.max_pixels:
            size = f"{told.width} x {told.height} is {told.pixels:,} pixels"
            error = f"decode: {size}, over the limit of {self.max_pixels:,} (--max-pixels raises it)"
        if error is None and (told is None or told.pixels <= self.large_pixels):
            try:
                pixels = decode(encoded, self.max_pixels)
            except ImageError as reason:
                error = f"decode: {reason}"
            except MemoryError:
                raise
            except Exception as unforeseen:  # of a decoder; it would end every run at this image
                error = f"decode: {described(unforeseen, 200)}"
        changed = read_version if read_version != version else None
        return Loaded(uri, version, changed, error, encoded, told, pixels, seconds, time.perf_counter() - start)
