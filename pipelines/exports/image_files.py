"""A file an image: palette PNG, overlays, GeoTIFF."""

from __future__ import annotations

from PIL import Image

from deeplab import masks
from deeplab.errors import ImageError
from deeplab.images.preview import picture
from pipelines.exports import geotiff as tiff
from pipelines.exports.source import Masks


def png(source: Masks) -> None:
    """The PNG of the table as it is: 8-bit with the class palette, 16-bit grey above 256 classes."""
    for mask in source:
        source.target(mask, ".png").write_bytes(mask.png)
        source.wrote(1)


def overlay(source: Masks) -> None:
    """The photo with the mask on it, as JPEG; of photos too large to be decoded a reduced one."""
    for mask in source:
        target = source.target(mask, ".jpg")
        if (encoded := source.photo(mask)) is None:
            continue
        try:
            Image.fromarray(masks.overlay(*picture(encoded, mask.labels()), source.classes)).save(target, quality=90)
        except ImageError as error:
            source.unusable(mask, error)
            continue
        source.wrote(1)


def geotiff(source: Masks) -> None:
    """TIFF with the coordinate system and transform of an image that has them."""
    for mask in source:
        target = source.target(mask, ".tif")
        if (encoded := source.photo(mask)) is None:
            continue
        try:
            tiff.write(target, mask.labels(), source.classes, encoded)
        except ImageError as error:
            source.unusable(mask, error)
            continue
        source.wrote(1)
