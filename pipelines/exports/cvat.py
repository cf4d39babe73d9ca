"""CVAT: annotations in its XML format, to upload to a task with the same photos and correct there."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from pipelines.exports.source import Masks

NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def write(source: Masks) -> None:
    """annotations.xml, "CVAT for images 1.1": a mask per image and class, without the background."""
    classes = source.classes
    with (source.folder / "annotations.xml").open("w", encoding="utf-8") as out:
        out.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta>\n    <task>\n')
        out.write("      <labels>\n")
        for index, (name, colour) in enumerate(zip(classes.names, classes.colours, strict=True)):
            if index != classes.background:
                colour_code = f"#{bytes(colour).hex()}"
                out.write(f"        <label><name>{escape(name)}</name><color>{colour_code}</color><type>mask</type>")
                out.write("<attributes></attributes></label>\n")
        out.write("      </labels>\n    </task>\n  </meta>\n")
        for mask in source:
            if NOT_XML.search(mask.name):
                source.done.skip(mask.uri, "its name holds characters that XML does not allow; png and coco-rle allow any")
                continue
            out.write(
                f'  <image id="{source.done.images}" name={quoteattr(mask.name)} width="{mask.width}" height="{mask.height}">\n'
            )
            labels = mask.labels()
            for index in np.unique(labels):
                if index != classes.background:
                    left, top, width, height, counts = box_rle(labels == index)
                    out.write(
                        f'    <mask label={quoteattr(classes.names[index])} source="auto" occluded="0" '
                        f'rle="{", ".join(map(str, counts))}" left="{left}" top="{top}" width="{width}" height="{height}" '
                        'z_order="0"></mask>\n'
                    )
            out.write("  </image>\n")
            source.wrote()
        out.write("</annotations>\n")
    source.done.files = 1


def box_rle(region: np.ndarray) -> tuple[int, int, int, int, list[int]]:
    """An H x W bool region as left, top, width and height of its box, and the run lengths in that box, row by row.

    The first run is of pixels outside the region and may have length 0.
    """
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    top, left = int(rows[0]), int(columns[0])
    inside = region[top : rows[-1] + 1, left : columns[-1] + 1]
    flat = np.concatenate([[False], inside.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], changes, [inside.size]]))
    return left, top, inside.shape[1], inside.shape[0], counts.tolist()
