"""Masks as GeoTIFF files with the georeference of their images."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from deeplab.classes import ClassTable
from deeplab.errors import ImageError, UserError, one_line
from deeplab.images.decoding import header
from deeplab.images.gdal_raster import GDAL, opened

if TYPE_CHECKING:
    from affine import Affine
    from rasterio.crs import CRS


class GeoTIFFError(UserError):
    """Georeferences cannot be read or written here; the message says what is missing."""


class Georeference(TypedDict):
    """The coordinate system of an image, None if unknown, and the transform from its columns and rows."""

    crs: CRS | None
    transform: Affine


def require(feature: str) -> None:
    """GeoTIFFError, which names `feature`, if rasterio is not installed."""
    try:
        import rasterio  # noqa: F401
    except ImportError as error:
        raise GeoTIFFError(f"{feature} needs rasterio: pip install 'deeplab-pipelines[large]'") from error


def write(path: Path, labels: np.ndarray, classes: ClassTable, source: bytes) -> None:
    """H x W class ids -> a tiled, deflated TIFF with the class palette (16-bit grey above 256 classes).

    It has the georeference of the encoded image `source`; without one it is a plain TIFF. ImageError as `place`.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    georeference: Mapping[str, object] = place(source, labels.shape) or {}
    options = {"compress": "deflate", "tiled": True, "blockxsize": 256, "blockysize": 256, "BIGTIFF": "IF_SAFER"}
    shape = {"height": labels.shape[0], "width": labels.shape[1], "count": 1, "dtype": labels.dtype.name}
    with rasterio.Env(**GDAL), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", **shape, **options, **georeference) as file:
            if labels.dtype == np.uint8:  # before the pixels, as the palette is in the file's header
                file.write_colormap(1, dict(enumerate(zip(*[iter(classes.palette())] * 3, strict=True))))
            file.update_tags(classes=json.dumps(dict(enumerate(classes.names))))
            file.write(labels, 1)


def place(source: bytes, shape: tuple[int, ...]) -> Georeference | None:
    """The georeference of an encoded GeoTIFF of this height and width; None for an image without one.

    ImageError for an image of another size, a damaged one, and one whose pixels are turned by an EXIF orientation.
    """
    from rasterio.errors import RasterioError

    head = header(source)
    if head is None or head.format != "TIFF":
        return None
    if (head.height, head.width) != shape:
        raise ImageError(f"it is {(head.height, head.width)} now, the mask {shape}")
    try:
        with opened(source, "GTiff") as image:
            crs, transform = image.crs, image.transform
    except RasterioError as error:
        raise ImageError(f"its georeference cannot be read ({one_line(error)})") from error
    if crs is None and transform.is_identity:
        return None
    if head.orientation != 1:
        raise ImageError(f"the mask is turned by the EXIF orientation {head.orientation}, its georeference is not")
    return Georeference(crs=crs, transform=transform)
