"""Masks out of the table: files in one of the formats of `pipelines.exports`, and a contact sheet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from deeplab import masks
from deeplab.files import mark_files
from deeplab.images import ImageError
from deeplab.sheet import contact_sheet
from pipelines import geotiff, shards
from pipelines.exports.formats import FORMATS
from pipelines.exports.pictures import picture
from pipelines.exports.source import Exported, Masks, name_of
from pipelines.report.rows import Rows
from pipelines.results import ResultsError, ResultsTable


def export(table: ResultsTable, model: str, folder: Path, form: str, report: Callable[[int], None] = lambda done: None) -> Exported:
    """Write the masks of `model` below `folder` in one of FORMATS; of each image the newest.

    Images whose photo is needed and gone, or that the format cannot hold, are left out with a reason. `report` gets the
    number of images so far. Raises ResultsError when there is nothing to export or an image would be overwritten, and
    GeoTIFFError where a format needs rasterio and there is none.
    """
    if form not in FORMATS:
        raise ResultsError(f"no format {form}; there are: {', '.join(FORMATS)}")
    if FORMATS[form].rasterio:
        geotiff.require(f"--format {form}")
    write = FORMATS[form].load()
    source = Masks(table, model, folder, report)
    try:
        write(source)
    finally:
        source.mark()
    return source.done


def show(table: ResultsTable, model: str, path: Path, count: int, worst: bool = False) -> Exported:
    """A contact sheet of `count` photos and overlays: an even sample, or those of lowest confidence.

    Photos that are gone are passed over. Raises ResultsError when none can be shown.
    """
    order = "confidence, uri" if worst else "hash(uri)"
    with Rows(table, model) as rows:  # sorting the table itself would read every mask in it
        chosen = rows.ask(f"SELECT id, confidence FROM rows WHERE status = 'ok' ORDER BY {order} LIMIT ?", [2 * count])
        found = rows.masks([number for number, _ in chosen])
    result = Exported()
    entries: list[tuple[str, np.ndarray, np.ndarray]] = []
    for number, confidence in chosen:
        if len(entries) == count:
            break
        uri, version, mask = found[number]
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
            f"{table.uri}: no photo of model {model} can be shown ({len(found)} ok rows, {result.left_out} unreadable)"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(entries, table.classes(model), model).save(path)
    mark_files([path])
    result.files = result.images = len(entries)
    return result
