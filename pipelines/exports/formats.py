"""The formats of `deeplab export`: what each is, and which function writes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Format:
    """`line` says what is written, for a person who chooses; `writer` is a module of this package and its function.

    The module is imported when the format is asked for: the command's help needs neither Arrow nor GDAL. `rasterio`: the
    optional dependency is needed.
    """

    line: str
    writer: str
    rasterio: bool = False

    def load(self) -> Callable[[Any], None]:
        """The function that writes pipelines.exports.source.Masks in this format."""
        module, function = self.writer.split(".")
        writer: Callable[[Any], None] = getattr(import_module(f"pipelines.exports.{module}"), function)
        return writer


FORMATS = {
    "png": Format("a palette PNG an image, pixel value = class id", "image_files.png"),
    "overlay": Format("the photo with its mask on it, as JPEG", "image_files.overlay"),
    "geotiff": Format("a TIFF an image, with the image's coordinate system", "image_files.geotiff", rasterio=True),
    "coco-rle": Format("coco.json, annotations with compressed RLE", "coco.rle"),
    "coco-panoptic": Format("panoptic.json and RGB PNGs, a segment per class", "coco.panoptic"),
    "geojson": Format("polygons in WGS 84, a file per georeferenced image", "polygons.geojson", rasterio=True),
    "geoparquet": Format("masks.parquet, the same polygons in one file", "polygons.geoparquet", rasterio=True),
    "label-studio": Format("tasks with predicted brush masks, to be corrected", "label_studio.write"),
    "cvat": Format("annotations.xml (for images 1.1), to be corrected", "cvat.write"),
    "huggingface": Format("photos and masks for datasets.load_dataset", "huggingface.write"),
}
