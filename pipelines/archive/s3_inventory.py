"""S3 Inventory reports as archives: `manifest.json` names CSV, ORC or Parquet files that list a bucket's objects.

The format is AWS's (S3 user guide, "Inventory lists"): CSV files have no header and URL-encoded keys, the manifest's
`fileSchema` names their columns; in ORC and Parquet the columns name themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.orc as paorc
import pyarrow.parquet as pq

from pipelines.storage import filesystems, s3

NAME = "manifest.json"
ACCEPTED = "an S3 Inventory manifest (version 2016-11-30) of CSV, ORC or Parquet files with Bucket, Key and ETag is accepted"


class InventoryError(filesystems.StorageError):
    """The manifest or one of its files is not an S3 Inventory report that can be read."""


def objects(manifest: str) -> Iterator[tuple[str, int, str]]:
    """(URI, bytes, ETag) of every current object that a report lists, without older versions and delete markers.

    manifest: s3:// URI or local path of manifest.json; its files are read from the bucket that it names. One batch of
    rows is in memory at a time. Raises InventoryError.
    """
    try:
        report = json.loads(filesystems.read_versioned(manifest)[0])
        kind, bucket = report["fileFormat"], report["destinationBucket"].removeprefix("arn:aws:s3:::")
        files = [f"s3://{bucket}/{file['key']}" for file in report["files"]]
        names = [_plain(name) for name in report["fileSchema"].split(",")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InventoryError(f"{manifest}: {type(error).__name__}: {error}; {ACCEPTED}") from error
    if kind not in ("CSV", "ORC", "Parquet"):
        raise InventoryError(f"{manifest}: files of format {kind!r}; {ACCEPTED}")
    for file in files:
        try:
            for batch in _batches(file, kind, names):
                yield from _current(batch, encoded=kind == "CSV")
        except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
            raise InventoryError(f"{manifest}: {file} cannot be read ({error}); {ACCEPTED}") from error


def _plain(name: str) -> str:
    """One spelling for e_tag and ETag."""
    return name.strip().lower().replace("_", "")


def _batches(file: str, kind: str, names: list[str]) -> Iterator[pa.RecordBatch]:
    system, path = filesystems.filesystem(file)
    if kind == "CSV":
        with system.open_input_stream(path, compression="gzip" if path.endswith(".gz") else None) as stream:
            options = pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
            yield from pacsv.open_csv(stream, pacsv.ReadOptions(column_names=names), convert_options=options)
    elif kind == "ORC":
        source = paorc.ORCFile(system.open_input_file(path))
        for stripe in range(source.nstripes):
            yield source.read_stripe(stripe)
    else:
        yield from pq.ParquetFile(system.open_input_file(path), pre_buffer=False).iter_batches()


def _current(batch: pa.RecordBatch, encoded: bool) -> Iterator[tuple[str, int, str]]:
    columns = {_plain(name): column for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    absent = {"bucket", "key", "etag"} - columns.keys()
    if absent:
        raise KeyError(f"no column for {', '.join(sorted(absent))}")
    wanted = ("bucket", "key", "etag", "size", "islatest", "isdeletemarker")
    values = [columns[name].to_pylist() if name in columns else [None] * batch.num_rows for name in wanted]
    for bucket, key, etag, size, latest, deleted in zip(*values, strict=True):
        name = unquote_plus(key) if encoded else key
        if (
            etag
            and not name.endswith("/")
            and not s3.hidden(name)
            and str(latest).lower() != "false"
            and str(deleted).lower() != "true"
        ):
            yield f"s3://{bucket}/{name}", int(size or 0), etag.strip('"')
