"""A results table as a Ray dataset, with decoded masks."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.data.extensions import ArrowVariableShapedTensorArray, ArrowVariableShapedTensorType

from deeplab import masks
from pipelines.table import newest_masks
from pipelines.table.results_table import ResultsTable
from pipelines.table.schema import SCHEMA

COLUMNS = ("uri", "version", "mask", "class_pixels", "confidence", "height", "width", "scored", "refined", "segmented_at")


def read_results(results: str, model: str | None = None, version: int | None = None) -> Dataset:
    """The masks of a results table: a Ray dataset with one row for each image that has a mask.

    results: folder or s3:// prefix of the table; every node must be able to read it. model: label or name of the model whose masks
    are read; None is the one that wrote last. version: of the table; None is the newest.
    Columns: those of COLUMNS as in the table, but `mask` is a tensor, H x W class ids, uint8 (uint16 above 256 classes). Of an
    image that was segmented in several versions the mask made last is read. Parquet files are read in tasks of their own.

    Raises ResultsError and StorageError. `ResultsTable.open(results).classes(model)` has the names of the class ids.
    """
    table = ResultsTable.open(results, version)
    label = table.pick_model(model)
    source = _PartFiles(table, label)
    if not source.tasks:
        return ray.data.from_arrow(_decoded(SCHEMA.empty_table()))
    return ray.data.read_datasource(source, override_num_blocks=len(source.tasks))


class _PartFiles(Datasource):
    """The Parquet files of a model's rows, each in a read task."""

    def __init__(self, table: ResultsTable, model: str) -> None:
        older = ray.put(newest_masks.outdated(table, model))
        self.tasks = [
            ReadTask(
                functools.partial(_blocks, table.uri, path, older),
                BlockMetadata(num_rows=None, size_bytes=None, input_files=[path], exec_stats=None),
            )
            for path in table.files(model)
        ]

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        return self.tasks


def _blocks(table_uri: str, path: str, older: ray.ObjectRef) -> Iterator[pa.Table]:
    """The rows of a file; `older`: a reference to `newest_masks.outdated`."""
    without = ray.get(older)
    for rows in newest_masks.batches(table_uri, path, without, COLUMNS):
        yield _decoded(rows)


def _decoded(rows: pa.Table) -> pa.Table:
    """The rows with all COLUMNS, masks as tensors."""
    columns = {}
    for name in COLUMNS:
        kind = SCHEMA.field(name).type
        columns[name] = rows[name].cast(kind) if name in rows.column_names else pa.nulls(rows.num_rows, kind)
    columns["mask"] = _tensors([masks.decode_png(png) for png in columns["mask"].to_pylist()])
    return pa.table(columns)


def _tensors(labels: list[np.ndarray]) -> pa.ExtensionArray:
    """Label maps as a column, always of variable shape: also where those of a block happen to have one, so that all blocks have
    one schema."""
    if labels:
        return ArrowVariableShapedTensorArray.from_numpy(labels)
    kind = ArrowVariableShapedTensorType(pa.uint8(), 2)
    return pa.ExtensionArray.from_storage(kind, pa.array([], kind.storage_type))
