"""The formats of `deeplab export`, with a description and a writer each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.exports.source import Masks


@dataclass(frozen=True)
class Format:
    """`line`: a description for help; `writer`: a module of this package and its function, imported only when used, so that help
    needs neither Arrow nor GDAL. `rasterio`: this optional dependency is needed.
    """

    line: str
    writer: str
    rasterio: bool = False

    def load(self) -> Callable[[Masks], None]:
        """The function that writes masks in this format."""
        module, function = self.writer.split(".")
        writer: Callable[[Masks], None] = getattr(import_module(f"pipelines.exports.{module}"), function)
        return writer


FORMATS = {
    "png": Format("palette PNGs, pixel value = class id, and classes.txt", "image_files.png"),
    "overlay": Format("the photo with its mask on top, as JPEG", "image_files.overlay"),
    "geotiff": Format("TIFFs with the images' coordinates, and classes.txt", "image_files.geotiff", rasterio=True),
    "coco-rle": Format("coco.json, annotations with compressed RLE", "coco.rle"),
    "coco-panoptic": Format("panoptic.json and RGB PNGs, a segment per class", "coco.panoptic"),
    "geojson": Format("polygons in WGS 84, a file per georeferenced image", "polygons.geojson", rasterio=True),
    "geoparquet": Format("masks.parquet, the same polygons in one file", "polygons.geoparquet", rasterio=True),
    "label-studio": Format("tasks with predicted brush masks, for correction", "label_studio.write"),
    "cvat": Format("annotations.xml (for images 1.1), for correction", "cvat.write"),
    "huggingface": Format("photos and masks for datasets.load_dataset", "huggingface.write"),
}
