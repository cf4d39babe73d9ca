"""Parquet files that hold image bytes (as Hugging Face data sets do), each image addressed as `shard.parquet#ROW`.

The version of an image is `SHARD-VERSION@GROUP+ROW`: its row group and its row there. A reader fetches the image column of a row
group once for all of its images.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.storage.object_file import open_object
from pipelines.storage.storage_errors import EntryError, reason

SUFFIX = ".parquet"
# Common names of columns with encoded images; their type is binary, or struct with a binary `bytes`.
IMAGE_COLUMNS = ("image", "img", "bytes", "image_bytes", "content", "data", "jpg", "jpeg", "png", "webp")
MAX_GROUP_BYTES = 1 << 30  # each process reads a row group as a whole
_lock = threading.Lock()


def image_column(schema: pa.Schema) -> str | None:
    """The column with encoded images, as its Parquet path; None if there is none."""
    for name in IMAGE_COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            if _is_binary(kind):
                return name
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type):
                return f"{name}.bytes"
    return None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def members(stream: io.BufferedReader) -> Iterator[tuple[str, int, int, int]]:
    """(row as text, row group, row in the group, bytes) of every row, from the footer alone; bytes are the row group's mean. Empty
    if there is no column of images. Raises ValueError if the footer is damaged, and the errors of `stream`.
    """
    with _arrow_errors():
        file = pq.ParquetFile(stream)
    if image_column(file.schema_arrow) is None:
        return
    row = 0
    for group in range(file.metadata.num_row_groups):
        metadata = file.metadata.row_group(group)
        for place in range(metadata.num_rows):
            # Zeros make the order of names the order of rows, so that the images of a group stay together.
            yield f"{row:09d}", group, place, metadata.total_byte_size // metadata.num_rows
            row += 1


@contextmanager
def _arrow_errors() -> Iterator[None]:
    """Turns Arrow's errors into a ValueError of one line. Damage is an OSError in Arrow; `open_object` restores its own errors."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from error


def read(shard: str, listed: str, group: int, place: int) -> bytes:
    """The bytes of one row; ValueError with the reason if they cannot be read."""
    with _lock:  # the threads of a process read a row group only once
        column = _group(shard, listed, group)
    if isinstance(column, str):
        raise ValueError(column)
    value = column[place].as_py() if place < len(column) else None
    if value is None:
        raise ValueError("the row holds no image bytes")
    return bytes(value)


@lru_cache(maxsize=2)
def _group(shard: str, listed: str, group: int) -> pa.ChunkedArray | str:
    """The image column of a row group, or the reason why it cannot be read, which is cached for its other images."""
    try:
        with open_object(shard, listed) as stream, _arrow_errors():
            file = pq.ParquetFile(stream)
            name = image_column(file.schema_arrow)
            if name is None or group >= file.metadata.num_row_groups:
                return "the shard holds no such image"
            if (size := _column_bytes(file.metadata.row_group(group), name)) > MAX_GROUP_BYTES:
                return f"its row group holds {size} bytes of images; up to {MAX_GROUP_BYTES} are accepted, write smaller ones"
            column: pa.ChunkedArray = file.read_row_group(group, columns=[name]).column(0)
    except EntryError as error:
        return reason(error)
    except ValueError as error:
        return f"its row group is damaged ({error})"
    for part in name.split(".")[1:]:
        column = pa.chunked_array([pc.struct_field(chunk, part) for chunk in column.chunks])
    return column


def _column_bytes(group: pq.RowGroupMetaData, name: str) -> int:
    columns = [group.column(index) for index in range(group.num_columns)]
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == name)
