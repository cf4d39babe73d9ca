"""A contact sheet: rows of photo | overlay pairs under a legend, as one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deeplab.classes import ClassTable
from deeplab.masks import overlay

CELL, GAP, CAPTION, LEGEND = 240, 12, 22, 44
INK, PAPER, SOFT = (32, 32, 36), (250, 250, 248), (120, 120, 126)


def contact_sheet(
    entries: Sequence[tuple[str, np.ndarray, np.ndarray]], classes: ClassTable, title: str, columns: int = 3
) -> Image.Image:
    """(caption, H x W x 3 uint8 photo, H x W labels) entries -> a picture, `columns` pairs a row.

    The legend has the classes that are on the sheet.
    """
    columns = max(1, min(columns, len(entries)))
    rows = -(-len(entries) // columns)
    width = GAP + columns * (2 * CELL + 2 * GAP)
    sheet = Image.new("RGB", (width, LEGEND + rows * (CELL + CAPTION + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    # The background is the photo itself. A legend of all 21 classes of VOC would be cut off.
    _legend(draw, classes, sorted({int(value) for _, _, labels in entries for value in np.unique(labels)} - {0}), title, width)
    small = ImageFont.load_default(13)
    for index, (caption, image, labels) in enumerate(entries):
        x = GAP + index % columns * (2 * CELL + 2 * GAP)
        y = LEGEND + index // columns * (CELL + CAPTION + GAP)
        for offset, pixels in ((0, image), (CELL + 2, overlay(image, labels, classes))):
            picture = Image.fromarray(pixels)
            picture.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
            sheet.paste(picture, (x + offset + (CELL - picture.width) // 2, y + (CELL - picture.height) // 2))
        draw.text((x, y + CELL + 3), _shortened(draw, caption, small, 2 * CELL), fill=INK, font=small)
    return sheet


def _legend(draw: ImageDraw.ImageDraw, classes: ClassTable, shown: Sequence[int], title: str, width: int) -> None:
    font = ImageFont.load_default(15)
    draw.text((GAP, 13), title, fill=INK, font=font)
    x = GAP + draw.textlength(title, font=font) + 2 * GAP
    for count, index in enumerate(shown):
        name, colour = classes.names[index], classes.display_colours[index]
        needed = 18 + draw.textlength(name, font=font) + GAP
        if x + needed > width - 4 * GAP:
            draw.text((x, 13), f"+ {len(shown) - count} more", fill=SOFT, font=font)
            break
        draw.rectangle((x, 15, x + 12, 27), fill=colour, outline=INK)
        draw.text((x + 18, 13), name, fill=INK, font=font)
        x += needed


def _shortened(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."
