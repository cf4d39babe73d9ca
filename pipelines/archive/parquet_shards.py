"""Parquet files that hold image bytes (as Hugging Face data sets do), each image addressed as `shard.parquet#ROW`.

The version of an image is `SHARD-VERSION@GROUP+ROW`: the row group it lies in and its place there. A reader fetches the
image column of that row group once for all images of it that it is given.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.storage.object_file import open_object
from pipelines.storage.storage_errors import EntryError, reason

SUFFIX = ".parquet"
# Columns that hold encoded images, by the names that people give them; of type binary, or struct with a binary `bytes`.
IMAGE_COLUMNS = ("image", "img", "bytes", "image_bytes", "content", "data", "jpg", "jpeg", "png", "webp")
# A row group is read as a whole, by each process.
MAX_GROUP_BYTES = 1 << 30
_lock = threading.Lock()


def image_column(schema: pa.Schema) -> str | None:
    """The column with encoded images, as Parquet names it inside; None where there is none."""
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
    """(row, group, place in it, bytes) of every row, from the footer alone; bytes are the row group's mean. Nothing where
    there is no column of images. Raises ValueError where the footer is damaged, and what `stream` raises.
    """
    with _arrow_errors():
        file = pq.ParquetFile(stream)
    if image_column(file.schema_arrow) is None:
        return
    row = 0
    for group in range(file.metadata.num_row_groups):
        of = file.metadata.row_group(group)
        for place in range(of.num_rows):
            # Digits enough that the order of names is the order of rows, so that a group's images stay together.
            yield f"{row:09d}", group, place, of.total_byte_size // of.num_rows
            row += 1


@contextmanager
def _arrow_errors() -> Iterator[None]:
    """Arrow's errors as ValueError in one line; it calls damage an OSError, too. (`open_object` raises its own in their place.)"""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from error


def read(shard: str, listed: str, group: int, place: int) -> bytes:
    """The bytes of one row; ValueError with the reason where the shard is not what was listed."""
    with _lock:  # so that the threads of a process read a row group once
        column = _group(shard, listed, group)
    if isinstance(column, str):
        raise ValueError(column)
    value = column[place].as_py() if place < len(column) else None
    if value is None:
        raise ValueError("the row holds no image bytes")
    return bytes(value)


@lru_cache(maxsize=2)
def _group(shard: str, listed: str, group: int) -> pa.ChunkedArray | str:
    """The image column of a row group; the reason why not, so that it is not read again for every image."""
    try:
        with open_object(shard, listed) as stream, _arrow_errors():
            file = pq.ParquetFile(stream)
            name = image_column(file.schema_arrow)
            if name is None or group >= file.metadata.num_row_groups:
                return "the shard holds no such image"
            if (size := _column_bytes(file.metadata.row_group(group), name)) > MAX_GROUP_BYTES:
                return f"its row group holds {size} bytes of images; up to {MAX_GROUP_BYTES} are accepted, write smaller ones"
            column: Any = file.read_row_group(group, columns=[name]).column(0)
    except EntryError as error:
        return reason(error)
    except ValueError as error:
        return f"its row group is damaged ({error})"
    for part in name.split(".")[1:]:
        column = pa.chunked_array([pc.struct_field(chunk, part) for chunk in column.chunks])
    return column


def _column_bytes(group: Any, name: str) -> int:
    columns = [group.column(index) for index in range(group.num_columns)]
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == name)
