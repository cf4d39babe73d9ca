"""The columns of a results table and of its files."""

from __future__ import annotations

import pyarrow as pa

# Columns that came later: nullable, and absent from tables and files of earlier releases, where every row has null. The next
# run that writes adds them to a table's schema; a further one is a line here.
ADDED = [
    pa.field("read_version", pa.string()),
]
SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("mask", pa.binary()),
        pa.field("class_pixels", pa.map_(pa.string(), pa.int64())),
        pa.field("confidence", pa.float32()),
        pa.field("model", pa.string(), nullable=False),
        pa.field("refined", pa.string()),
        pa.field("run", pa.string(), nullable=False),
        pa.field("segmented_at", pa.timestamp("us", tz="UTC"), nullable=False),
        *ADDED,
    ]
)
# In the files themselves the partition column is left out: readers take it from the log, or from the folder's name.
FILE_SCHEMA = SCHEMA.remove(SCHEMA.get_field_index("model"))
FORMAT_KEY, FORMAT = "deeplab.format", "results/1"
MODEL_KEY = "deeplab.model."
# Columns by which files are skipped; none is ever null.
SKIPPING = ("uri", "status", "run")


def done_versions(rows: str = "results", where: str = "TRUE") -> str:
    """SQL for the (uri, version) of images that are done by `rows`: as they were listed and, where that differs, as read."""
    read = f"SELECT uri, read_version FROM {rows} WHERE read_version IS NOT NULL AND {where}"
    return f"SELECT uri, version FROM {rows} WHERE {where} UNION ALL {read}"


def same_type(found: pa.DataType | None, wanted: pa.DataType) -> bool:
    """Equal up to what Delta cannot tell apart (large and plain strings, field names inside a map)."""
    if found is None:
        return False
    if pa.types.is_map(wanted):
        return (
            pa.types.is_map(found) and same_type(found.key_type, wanted.key_type) and same_type(found.item_type, wanted.item_type)
        )
    for kinds in (
        (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
    ):
        if any(kind(wanted) for kind in kinds):
            return any(kind(found) for kind in kinds)
    return found == wanted
