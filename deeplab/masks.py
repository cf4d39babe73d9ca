"""Label maps as files and pictures: palette PNG, COCO RLE, overlays."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import PngImagePlugin

from deeplab.classes import ClassTable

SLAB = 4_000_000  # pixels that are counted or compressed at a time


class MaskPNG:
    """The PNG of a mask, written from top to bottom: 8-bit with the class palette, or 16-bit grey above 256 classes.

    Memory holds the compressed bytes and one slab of rows, so a mask may be larger than memory. PNG's filters are not
    used: they suit photographs, and make label maps larger.
    """

    def __init__(self, height: int, width: int, classes: ClassTable) -> None:
        self.shape, self.rows_missing = (height, width), height
        self.dtype = np.dtype(">u2" if len(classes) > 256 else np.uint8)
        self.out = io.BytesIO()
        self.out.write(b"\x89PNG\r\n\x1a\n")
        colour = 0 if len(classes) > 256 else 3  # PNG's colour types for grey and palette
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8 * self.dtype.itemsize, colour, 0, 0, 0))
        if len(classes) <= 256:
            self._chunk(b"PLTE", bytes(classes.palette()))
        self.deflate = zlib.compressobj(6)

    def add(self, labels: np.ndarray) -> None:
        """The next k rows, k x W class ids."""
        step = max(1, SLAB // self.shape[1])
        for top in range(0, len(labels), step):
            rows = labels[top : top + step].astype(self.dtype, copy=False)
            lines = np.zeros((len(rows), 1 + rows.shape[1] * self.dtype.itemsize), np.uint8)  # 0 before each row: no filter
            lines[:, 1:] = np.ascontiguousarray(rows).view(np.uint8)
            if data := self.deflate.compress(lines.data):
                self._chunk(b"IDAT", data)
        self.rows_missing -= len(labels)

    def finish(self) -> bytes:
        """The whole file. ValueError if there were too few or too many rows."""
        if self.rows_missing:
            raise ValueError(f"a mask of {self.shape[0]} rows got {self.shape[0] - self.rows_missing}")
        self._chunk(b"IDAT", self.deflate.flush())
        self._chunk(b"IEND", b"")
        return self.out.getvalue()

    def _chunk(self, name: bytes, data: bytes) -> None:
        self.out.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))


def encode_png(labels: np.ndarray, classes: ClassTable) -> bytes:
    """H x W class ids -> their PNG, as MaskPNG writes it."""
    height, width = labels.shape
    png = MaskPNG(height, width, classes)
    png.add(labels)
    return png.finish()


def decode_png(data: bytes) -> np.ndarray:
    """A mask from the results table, of any size -> H x W uint8 or uint16 class ids."""
    # Image.open would refuse masks above Pillow's pixel limit.
    with PngImagePlugin.PngImageFile(io.BytesIO(data)) as picture:
        array = np.array(picture)
    return array if array.dtype == np.uint8 else array.astype(np.uint16)


def class_pixels(labels: np.ndarray, classes: ClassTable) -> dict[str, int]:
    """Pixels per class name; classes that are absent are left out."""
    counts = np.zeros(len(classes), np.int64)
    step = max(1, SLAB // max(1, labels.shape[1]))
    for top in range(0, len(labels), step):  # bincount takes eight bytes a pixel
        counts += np.bincount(labels[top : top + step].ravel(), minlength=len(classes))
    return {classes.names[index]: int(counts[index]) for index in np.flatnonzero(counts)}


def overlay(image: np.ndarray, labels: np.ndarray, classes: ClassTable, opacity: float = 0.55) -> np.ndarray:
    """H x W x 3 uint8 photo with every class but 0 (background) tinted in its colour and outlined; same shape."""
    colours = np.array(classes.display_colours, np.float32)[labels]
    tinted = (1 - opacity) * image + opacity * colours
    result = np.where((labels > 0)[..., None], tinted, image).astype(np.uint8)
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    result[edge] = 255
    return result


def coco_annotations(labels: np.ndarray, image_id: int, background: int | None = 0) -> list[dict[str, Any]]:
    """One COCO annotation (compressed RLE of the whole class region) per class in an H x W label map, `background` left out."""
    from pycocotools import mask as coco

    annotations = []
    for index in np.unique(labels):
        if index == background:
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
