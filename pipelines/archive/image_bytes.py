"""An image's bytes by its name, from a file, an object or a shard, or the reason why there are none."""

from __future__ import annotations

from deeplab.errors import described
from pipelines.archive import shards
from pipelines.storage import filesystems, storage_errors


def read(uri: str, expected: str) -> tuple[bytes, str, str | None]:
    """(bytes, version of those bytes, reason why not). What is the image's own fault is a reason; the system's raises.

    The latter (a store that is down, no memory) is tried again for a while and then fails the block, so that an outage
    never turns into rows.
    """
    try:
        return *filesystems.outlast(lambda: shards.fetch(uri, expected)), None
    except storage_errors.OWN as error:
        return b"", expected, f"read: {storage_errors.reason(error)}"
    except (OSError, MemoryError):
        raise
    except Exception as error:  # nothing of storage's; it would end every run at this image
        return b"", expected, f"read: {described(error, 200)}"
