"""The bytes of an image by its URI, from a file, an object or a shard, or the reason why they cannot be read."""

from __future__ import annotations

from deeplab.errors import described
from pipelines.archive import shards
from pipelines.storage import filesystems, storage_errors


def read(uri: str, expected: str) -> tuple[bytes, str, str | None]:
    """(bytes, version of those bytes, error). A fault of the image is returned as `error`; a fault of the system is raised.

    The latter (a store that is down, no memory) is retried for a while and then fails the block, so that an outage never becomes
    error rows.
    """
    try:
        return *filesystems.outlast(lambda: shards.fetch(uri, expected)), None
    except storage_errors.OWN as error:
        return b"", expected, f"read: {storage_errors.reason(error)}"
    except (OSError, MemoryError):
        raise
    except Exception as error:  # not from storage; raised, it would stop every run at this image
        return b"", expected, f"read: {described(error, 200)}"
