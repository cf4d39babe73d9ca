"""Figures as pictures: the papers' trimap curve, the confusion matrix, and the course of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, GRID, PAPER = (32, 32, 36), (222, 222, 226), (255, 255, 255)
LINES = ((46, 110, 180), (196, 78, 82), (82, 150, 90), (140, 96, 170))
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 480, 70, 24, 50, 60
COURSE_WIDTH, PANEL_HEIGHT, PANEL_LEFT = 900, 260, 56
MOST_NAMES = 40  # most classes whose names fit beside the matrix
NUMBERS = 12  # most classes for which every cell shows its number


def trimap_curve(curves: Mapping[str, Mapping[int, float | None]], title: str) -> Image.Image:
    """Name -> {trimap width in pixels: mIoU 0..1} -> mIoU (%) over the width, as arXiv 1606.00915's figure 10.

    Widths without a figure are left out. Raises ValueError if no curve has a figure.
    """
    lines = {name: [(w, 100 * v) for w, v in sorted(curve.items()) if v is not None] for name, curve in curves.items()}
    points = [point for line in lines.values() for point in line]
    if not points:
        raise ValueError("no pixel lies near a void boundary: these labels have no trimap")
    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(14)
    widest = max(width for width, _ in points)
    low, high = (5 * np.floor(min(v for _, v in points) / 5), 5 * np.ceil(max(v for _, v in points) / 5))
    high = max(high, low + 5)

    def place(width: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * width / widest
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    draw.text((LEFT + 20, 12), title, fill=INK, font=font)
    for value in np.linspace(low, high, 6):
        y = place(0, value)[1]
        draw.line((LEFT, y, WIDTH - RIGHT, y), fill=GRID)
        draw.text((LEFT - 8, y), f"{value:.0f}", fill=INK, font=font, anchor="rm")
    for width in np.linspace(0, widest, 5):
        x = place(width, low)[0]
        draw.line((x, HEIGHT - BOTTOM, x, HEIGHT - BOTTOM + 5), fill=INK)
        draw.text((x, HEIGHT - BOTTOM + 8), f"{width:g}", fill=INK, font=font, anchor="ma")
    draw.text((LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 12), "trimap width (pixels)", fill=INK, font=font, anchor="ms")
    draw.text((8, 12), "mIoU (%)", fill=INK, font=font)
    for index, (name, line) in enumerate(lines.items()):
        colour = LINES[index % len(LINES)]
        dots = [place(*point) for point in line]
        if len(dots) > 1:
            draw.line(dots, fill=colour, width=2)
        for x, y in dots:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        y = HEIGHT - BOTTOM - 22 * (len(lines) - index)
        draw.line((WIDTH - 210, y, WIDTH - 180, y), fill=colour, width=3)
        draw.text((WIDTH - 172, y), name, fill=INK, font=font, anchor="lm")
    return picture


def confusion_matrix(confusion: np.ndarray | Sequence[Sequence[int]], names: Sequence[str], title: str) -> Image.Image:
    """confusion[t][p] (C x C) -> a picture: a row per true class, shaded by the share of its pixels."""
    counts, classes = np.asarray(confusion), len(names)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell = max(4, min(56, 1400 // classes))
    font = ImageFont.load_default(max(9, min(14, cell - 4)))
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    room = int(max(measure.textlength(name, font=font) for name in names)) + 16 if classes <= MOST_NAMES else 20
    side = cell * classes
    heading = f"{title} (rows: labels, columns: predictions, % of a row)"
    wide = int(measure.textlength(heading, font=ImageFont.load_default(14))) + 20
    picture = Image.new("RGB", (max(room + side + 20, wide), 50 + side + room), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((10, 12), heading, fill=INK, font=ImageFont.load_default(14))
    for row in range(classes):
        for column in range(classes):
            share = float(shares[row, column])
            base = (46, 110, 180) if row == column else (196, 78, 82)
            colour = tuple(round(255 + (value - 255) * share**0.5) for value in base)  # the root makes rare confusions visible
            x, y = room + cell * column, 50 + cell * row
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=colour, outline=GRID if cell > 8 else None)
            if classes <= NUMBERS:
                ink = PAPER if share > 0.5 else INK
                draw.text((x + cell / 2, y + cell / 2), f"{100 * share:.1f}", fill=ink, font=font, anchor="mm")
    if classes <= MOST_NAMES:
        for index, name in enumerate(names):
            draw.text((room - 8, 50 + cell * index + cell / 2), name, fill=INK, font=font, anchor="rm")
            label = Image.new("RGB", (room, cell), PAPER)
            ImageDraw.Draw(label).text((room - 8, cell / 2), name, fill=INK, font=font, anchor="rm")
            picture.paste(label.rotate(90, expand=True), (room + cell * index, 50 + side))
    return picture


def training_curves(validations: Sequence[Mapping[str, Any]]) -> Image.Image:
    """One panel for the loss and one for the mIoU; `validations`: entries with step, loss, mean_iou, at least one."""
    picture = Image.new("RGB", (COURSE_WIDTH, 2 * PANEL_HEIGHT), PAPER)
    draw = ImageDraw.Draw(picture)
    steps = [entry["step"] for entry in validations]
    for row, (key, title) in enumerate((("loss", "training loss"), ("mean_iou", "mIoU on the validation split"))):
        _panel(draw, row * PANEL_HEIGHT, title, steps, [float(entry[key]) for entry in validations], LINES[1 - row])
    return picture


def _panel(draw: ImageDraw.ImageDraw, top: int, title: str, steps: list[int], values: list[float], colour: tuple[int, ...]) -> None:
    font = ImageFont.load_default(13)
    low, high = min(values), max(values)
    span = (high - low) or max(abs(high), 1e-6)
    left, right, upper, lower = PANEL_LEFT, COURSE_WIDTH - 20, top + 34, top + PANEL_HEIGHT - 34
    draw.text((left, top + 10), f"{title}: {values[-1]:.4f} at step {steps[-1]}", fill=INK, font=font)

    def place(step: int, value: float) -> tuple[float, float]:
        x = left + (right - left) * (step / steps[-1] if steps[-1] else 0)
        return x, lower - (lower - upper) * (value - low) / span

    for value in (low, low + span / 2, low + span):
        y = place(0, value)[1]
        draw.line((left, y, right, y), fill=GRID)
        draw.text((6, y - 8), f"{value:.3f}", fill=INK, font=font)
    for step in (0, steps[-1] // 2, steps[-1]):
        draw.text((place(step, low)[0] - 14, lower + 6), str(step), fill=INK, font=font)
    points = [place(step, value) for step, value in zip(steps, values, strict=True)]
    if len(points) > 1:
        draw.line(points, fill=colour, width=2)
    for x, y in points:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
