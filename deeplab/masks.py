"""Label maps as files and pictures: palette PNG, COCO RLE, overlays."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from deeplab.classes import ClassTable


def encode_png(labels: np.ndarray, classes: ClassTable) -> bytes:
    """H x W class ids -> PNG: 8-bit with the class palette, or 16-bit grey above 256 classes."""
    if len(classes) > 256:
        picture = Image.fromarray(labels.astype(np.uint16))
    else:
        picture = Image.fromarray(labels.astype(np.uint8))
        picture.putpalette(classes.palette())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    """A mask from the results table -> H x W uint8 or uint16 class ids."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        array = np.array(picture)
    return array if array.dtype == np.uint8 else array.astype(np.uint16)


def class_pixels(labels: np.ndarray, classes: ClassTable) -> dict[str, int]:
    """Pixels per class name; classes that are absent are left out."""
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    return {classes.names[index]: int(counts[index]) for index in np.flatnonzero(counts)}


def overlay(image: np.ndarray, labels: np.ndarray, classes: ClassTable, opacity: float = 0.55) -> np.ndarray:
    """H x W x 3 uint8 photo with every class but 0 (background) tinted in its colour and outlined; same shape."""
    colours = np.array(classes.colours, np.float32)[labels]
    # VOC's colours are dark; a brighter tint of the same hue reads better on a photo.
    colours = colours * (255.0 / np.maximum(colours.max(-1, keepdims=True), 1))
    tinted = (1 - opacity) * image + opacity * colours
    result = np.where((labels > 0)[..., None], tinted, image).astype(np.uint8)
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    result[edge] = 255
    return result


def coco_annotations(labels: np.ndarray, image_id: int) -> list[dict[str, Any]]:
    """One COCO annotation (compressed RLE of the whole class region) per class but 0 in an H x W label map."""
    from pycocotools import mask as coco

    annotations = []
    for index in np.unique(labels):
        if index == 0:
            continue
        region = np.asfortranarray(labels == index, np.uint8)
        rle = coco.encode(region)
        annotations.append(
            {
                "image_id": image_id,
                "category_id": int(index),
                "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
                "area": int(region.sum()),
                "bbox": [float(value) for value in coco.toBbox(rle)],
                "iscrowd": 1,
            }
        )
    return annotations
