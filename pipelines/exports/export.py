"""Export masks as files in one of the formats of formats.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipelines.exports import geotiff
from pipelines.exports.formats import FORMATS
from pipelines.exports.source import Exported, Masks
from pipelines.table.results_table import ResultsTable
from pipelines.table.table_errors import ResultsError


def export(table: ResultsTable, model: str, folder: Path, form: str, report: Callable[[int], None] = lambda done: None) -> Exported:
    """Write the newest mask of each image by `model` below `folder`, in one of FORMATS.

    Images that the format cannot represent, or whose photo is needed but gone, are left out with a reason. `report` gets the
    number of images so far. Raises ResultsError if there is nothing to export or an image would be overwritten, and
    GeoTIFFError if the format needs rasterio and it is not installed.
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
