"""Loss and mIoU over the steps of a training, as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, MARGIN = 900, 260, 56
INK, GRID, COLOURS = (32, 32, 36), (222, 222, 226), ((196, 78, 82), (46, 110, 180))


def curves(validations: Sequence[Mapping[str, Any]]) -> Image.Image:
    """One panel for the loss and one for the mIoU; `validations`: entries with step, loss, mean_iou, at least one."""
    picture = Image.new("RGB", (WIDTH, 2 * HEIGHT), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    steps = [entry["step"] for entry in validations]
    for row, (key, title) in enumerate((("loss", "training loss"), ("mean_iou", "mIoU on the validation split"))):
        _panel(draw, row * HEIGHT, title, steps, [float(entry[key]) for entry in validations], COLOURS[row])
    return picture


def _panel(draw: ImageDraw.ImageDraw, top: int, title: str, steps: list[int], values: list[float], colour: tuple[int, ...]) -> None:
    font = ImageFont.load_default(13)
    low, high = min(values), max(values)
    span = (high - low) or max(abs(high), 1e-6)
    left, right, upper, lower = MARGIN, WIDTH - 20, top + 34, top + HEIGHT - 34
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
