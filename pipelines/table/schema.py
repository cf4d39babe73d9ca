"""The columns of a results table and of its files."""

from __future__ import annotations

from typing import TypedDict

import pyarrow as pa

# Columns that later releases added: nullable, and absent from older tables and files, where every row has null. The next run
# that writes adds them to the table's schema. To add a column, add a line here.
ADDED = [
    pa.field("read_version", pa.string()),
    pa.field("scored", pa.string()),
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
# Files leave out the partition column: readers take it from the log or from the folder's name.
FILE_SCHEMA = SCHEMA.remove(SCHEMA.get_field_index("model"))


class MaskColumns(TypedDict):
    """The columns that describe the mask of an `ok` row, as pyarrow takes and returns them."""

    height: int
    width: int
    mask: bytes
    class_pixels: list[tuple[str, int]]
    confidence: float
    refined: str | None
    scored: str | None


def with_added(rows: pa.Table) -> pa.Table:
    """Rows of any release with all columns of ADDED; those that are absent are null."""
    for field in ADDED:
        if field.name not in rows.column_names:
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    return rows


FORMAT_KEY, FORMAT = "deeplab.format", "results/1"
MODEL_KEY = "deeplab.model."
# Columns whose filters skip files; none is ever null.
SKIPPING = ("uri", "status", "run")


def done_versions(rows: str = "results", where: str = "TRUE") -> str:
    """SQL for the (uri, version) of images that have a row in `rows`: the listed version and, where it differs, the one read."""
    read = f"SELECT uri, read_version FROM {rows} WHERE read_version IS NOT NULL AND {where}"
    return f"SELECT uri, version FROM {rows} WHERE {where} UNION ALL {read}"


def same_type(actual: pa.DataType | None, wanted: pa.DataType) -> bool:
    """Whether types are equal, apart from what Delta cannot tell apart (large and plain strings, field names inside a map)."""
    if actual is None:
        return False
    if pa.types.is_map(wanted):
        same_keys = pa.types.is_map(actual) and same_type(actual.key_type, wanted.key_type)
        return same_keys and same_type(actual.item_type, wanted.item_type)
    for kinds in (
        (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
    ):
        if any(kind(wanted) for kind in kinds):
            return any(kind(actual) for kind in kinds)
    return bool(actual == wanted)
