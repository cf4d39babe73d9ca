"""Masks as GeoTIFF files that lie where their images lie, and where that is."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from deeplab.classes import ClassTable
from deeplab.errors import ImageError, UserError, one_line
from deeplab.images.decoding import header
from deeplab.images.gdal_raster import GDAL, opened


class GeoTIFFError(UserError):
    """Georeferences cannot be read or written here; the message says what is missing."""


def require(what: str) -> None:
    """GeoTIFFError, which says that `what` needs it, where rasterio is not installed."""
    try:
        import rasterio  # noqa: F401
    except ImportError as error:
        raise GeoTIFFError(f"{what} needs rasterio: pip install 'deeplab-pipelines[large]'") from error


def write(path: Path, labels: np.ndarray, classes: ClassTable, source: bytes) -> None:
    """H x W class ids -> a tiled, deflated TIFF with the class palette (16-bit grey above 256 classes).

    Coordinate system and transform are those of the encoded image `source` where it is a GeoTIFF; else the file is a
    plain TIFF. ImageError for an image that is another one now, or whose pixels were turned for the mask.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    placed = place(source, labels.shape)
    options = {"compress": "deflate", "tiled": True, "blockxsize": 256, "blockysize": 256, "BIGTIFF": "IF_SAFER"}
    shape = {"height": labels.shape[0], "width": labels.shape[1], "count": 1, "dtype": labels.dtype.name}
    with rasterio.Env(**GDAL), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", **shape, **options, **placed) as file:
            if labels.dtype == np.uint8:  # before the pixels: the palette stands in the file's head
                file.write_colormap(1, dict(enumerate(zip(*[iter(classes.palette())] * 3, strict=True))))
            file.update_tags(classes=json.dumps(dict(enumerate(classes.names))))
            file.write(labels, 1)


def place(source: bytes, shape: tuple[int, ...]) -> dict[str, Any]:
    """`crs` (may be None) and `transform` of an encoded GeoTIFF of this height and width; nothing for an image without.

    ImageError for an image of another size, a damaged one, and one whose pixels are turned by an EXIF orientation.
    """
    from rasterio.errors import RasterioError

    told = header(source)
    if told is None or told.format != "TIFF":
        return {}
    if (told.height, told.width) != shape:
        raise ImageError(f"it is {(told.height, told.width)} now, the mask {shape}")
    try:
        with opened(source, "GTiff") as image:
            crs, transform = image.crs, image.transform
    except RasterioError as error:
        raise ImageError(f"its georeference cannot be read ({one_line(error)})") from error
    if crs is None and transform.is_identity:
        return {}
    if told.orientation != 1:
        raise ImageError(f"the mask is turned by the EXIF orientation {told.orientation}, its georeference is not")
    return {"crs": crs, "transform": transform}
