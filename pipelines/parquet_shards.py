"""Parquet files that hold image bytes (as Hugging Face data sets do), each image addressed as `shard.parquet#ROW`.

The version of an image is `SHARD-VERSION@GROUP+ROW`: the row group it lies in and its place there. A reader fetches the
image column of that row group once for all images of it that it is given.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import storage

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


def open_file(shard: str) -> pq.ParquetFile:
    system, path = storage.filesystem(shard)
    return pq.ParquetFile(system.open_input_file(path))


def members(shard: str, version: str) -> Iterator[tuple[str, int, str]]:
    """(row, bytes, version) of every row, from the footer alone; bytes are the row group's mean."""
    metadata = open_file(shard).metadata
    row = 0
    for group in range(metadata.num_row_groups):
        of = metadata.row_group(group)
        for place in range(of.num_rows):
            # Digits enough that the order of names is the order of rows, so that a group's images stay together.
            yield f"{row:09d}", of.total_byte_size // of.num_rows, f"{version}@{group}+{place}"
            row += 1


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
    """The image column of a row group; the reason where it is damaged, so that it is not read again for every image."""
    found = storage.stat_all([shard])[0]
    if found is None or found.version != listed:
        raise ValueError("the shard changed after it was listed; the next run lists it anew")
    file = open_file(shard)
    name = image_column(file.schema_arrow)
    if name is None or group >= file.metadata.num_row_groups:
        raise ValueError("the shard holds no such image")
    if (size := _column_bytes(file.metadata.row_group(group), name)) > MAX_GROUP_BYTES:
        raise ValueError(f"its row group holds {size} bytes of images; up to {MAX_GROUP_BYTES} are accepted, write smaller ones")
    try:
        column: Any = file.read_row_group(group, columns=[name]).column(0)
    except (OSError, pa.ArrowException):
        # Arrow calls a damaged page what it calls a store that is away. The latter's bytes cannot be had; and where the
        # store was away for a moment only, the second reading goes well.
        _touch(shard, file.metadata.row_group(group), name)
        try:
            column = open_file(shard).read_row_group(group, columns=[name]).column(0)
        except (OSError, pa.ArrowException) as error:
            return f"its row group is damaged ({str(error).splitlines()[0]})"
    for part in name.split(".")[1:]:
        column = pa.chunked_array([pc.struct_field(chunk, part) for chunk in column.chunks])
    return column


def _touch(shard: str, group: Any, name: str) -> None:
    """Read the bytes of a column of a row group; raises the store's own error where it does not give them."""
    system, path = storage.filesystem(shard)
    with system.open_input_file(path) as stream:
        for column in (group.column(index) for index in range(group.num_columns)):
            if column.path_in_schema == name:
                start = column.dictionary_page_offset or column.data_page_offset
                stream.read_at(column.total_compressed_size, start)


def _column_bytes(group: Any, name: str) -> int:
    columns = [group.column(index) for index in range(group.num_columns)]
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == name)
