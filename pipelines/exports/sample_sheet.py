"""A contact sheet of a results table: some photos with their masks as one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deeplab import masks
from deeplab.contact_sheet import contact_sheet
from deeplab.errors import ImageError
from deeplab.files import mark_files
from deeplab.images.preview import picture
from pipelines.archive import shards
from pipelines.archive.shards import name_of
from pipelines.exports.source import Exported
from pipelines.table.results_table import ResultsTable
from pipelines.table.snapshot import Snapshot
from pipelines.table.table_errors import ResultsError


def show(table: ResultsTable, model: str, path: Path, count: int, worst: bool = False) -> Exported:
    """A contact sheet of `count` photos and overlays: an even sample, or those of lowest confidence.

    Photos that are gone are left out. Raises ResultsError if none can be shown.
    """
    order = "confidence, uri" if worst else "hash(uri)"
    with Snapshot(table, model) as rows:  # sorting the table itself would read every mask in it
        chosen = rows.ask(f"SELECT id, confidence FROM rows WHERE status = 'ok' ORDER BY {order} LIMIT ?", [2 * count])
        mask_rows = rows.masks([number for number, _ in chosen])
    result = Exported()
    entries: list[tuple[str, np.ndarray, np.ndarray]] = []
    for number, confidence in chosen:
        if len(entries) == count:
            break
        uri, version, mask = mask_rows[number]
        try:
            pair = picture(shards.fetch(uri, version)[0], masks.decode_png(mask))
        except OSError as error:
            result.skip(uri, f"the photo cannot be read: {error}")
            continue
        except ImageError as error:
            result.skip(uri, f"the photo cannot be used: {error}")
            continue
        entries.append((f"{Path(name_of(uri)).name}   confidence {confidence:.2f}", *pair))
    if not entries:
        raise ResultsError(
            f"{table.uri}: no photo of model {model} can be shown ({len(mask_rows)} ok rows, {result.left_out} unreadable)"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(entries, table.classes(model), model).save(path)
    mark_files([path])
    result.files = result.images = len(entries)
    return result
