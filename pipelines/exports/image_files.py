"""One file per image: palette PNG, overlay, GeoTIFF."""

from __future__ import annotations

from PIL import Image

from deeplab import masks
from deeplab.errors import ImageError
from deeplab.images.preview import picture
from pipelines.exports import geotiff as tiff
from pipelines.exports.source import Masks


def png(source: Masks) -> None:
    """The PNG of the table, unchanged: 8-bit with the class palette, 16-bit grey above 256 classes. classes.txt names the ids."""
    source.write_classes()
    for mask in source:
        source.target(mask, ".png").write_bytes(mask.png)
        source.wrote(1)


def overlay(source: Masks) -> None:
    """The photo with the mask on top, as JPEG, reduced if the photo is too large to decode."""
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
    """A TIFF with the georeference of the image, if it has one. classes.txt names the ids."""
    source.write_classes()
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
