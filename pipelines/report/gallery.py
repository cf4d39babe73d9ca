"""The cards of the gallery: the rows, their order and their pictures."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
from PIL import Image

from deeplab import masks
from deeplab.classes import ClassTable
from deeplab.errors import ImageError
from deeplab.images.preview import picture
from pipelines.archive import shards
from pipelines.archive.shards import name_of
from pipelines.table import counts
from pipelines.table.snapshot import Snapshot

SIDE = 320  # of a thumbnail, pixels
LOW = 0.1  # share of the rows that "low confidence" lists
COLUMNS = "id, uri, status, error, height, width, confidence, names"


@dataclass(frozen=True)
class Pictures:
    """The pictures of a row: PNG of the mask (class 0 transparent) and JPEG of the photo; None with the reason in `gone`."""

    photo: bytes | None
    mask: bytes
    gone: str = ""


class Card(TypedDict):
    """A row in the gallery, JSON-ready. `size`: height, width; `classes`: class ids without the background (class 0); `photo`,
    `mask`: relative URLs of its pictures."""

    id: int
    name: str
    error: str | None
    size: list[int] | None
    confidence: float | None
    classes: list[int]
    photo: NotRequired[str]
    mask: NotRequired[str]
    gone: NotRequired[str]


def card(row: tuple[Any, ...], classes: ClassTable) -> Card:
    """The card of a row of COLUMNS, without its pictures."""
    number, uri, status, error, height, width, confidence, names = row
    ids = {name: index for index, name in enumerate(classes.names)}
    return Card(
        id=number,
        name=name_of(uri),
        error=(error or "no reason given") if status != "ok" else None,
        size=[height, width] if height is not None else None,
        confidence=None if confidence is None else round(confidence, 4),
        classes=sorted(ids[name] for name in names or [] if ids.get(name)),
    )


def sample(rows: Snapshot, count: int) -> list[Card]:
    """Cards of a sample: six of ten even by hash, two of the lowest confidence, two errors of each reason in turn."""
    low, bad = max(1, count // 5), max(1, count // 5)
    numbers = [n for (n,) in rows.ask("SELECT id FROM rows WHERE status = 'ok' ORDER BY confidence, uri LIMIT ?", [low])]
    reason = counts.reason_of("coalesce(error, '')")
    numbers += [
        n
        for (n,) in rows.ask(
            "SELECT id FROM rows WHERE status <> 'ok' "
            f"ORDER BY row_number() OVER (PARTITION BY {reason} ORDER BY uri), uri LIMIT ?",
            [bad],
        )
    ]
    numbers += [n for (n,) in rows.ask("SELECT id FROM rows WHERE status = 'ok' ORDER BY hash(uri), id LIMIT ?", [count])]
    numbers = list(dict.fromkeys(numbers))[:count]
    marks = ", ".join("?" * len(numbers)) or "NULL"
    selected = rows.ask(f"SELECT {COLUMNS} FROM rows WHERE id IN ({marks}) ORDER BY uri, id", numbers)
    return [card(row, rows.classes) for row in selected]


def page(
    rows: Snapshot, offset: int, limit: int, kind: str = "all", name: str = "", class_name: str | None = None
) -> tuple[int, list[Card]]:
    """(number of matching rows, `limit` of their cards from `offset` on). kind: "all", "low" (the least confident), "errors"."""
    where, values = ["true"], []
    order = "uri, id"
    if kind == "errors":
        where.append("status <> 'ok'")
    if kind == "low":
        where.append(f"confidence <= (SELECT quantile_cont(confidence, {LOW}) FROM rows)")
        order = "confidence, uri, id"
    if class_name is not None:
        where.append("list_contains(names, ?)")
        values.append(class_name)
    if name:
        # As the name is shown, or as it is encoded in the URI. A name that is not UTF-8 does not decode.
        where.append("(contains(lower(uri), lower(?)) OR uri LIKE 'file:%' AND contains(lower(try(url_decode(uri))), lower(?)))")
        values += [name, name]
    condition = " AND ".join(where)
    ((total,),) = rows.ask(f"SELECT count(*) FROM rows WHERE {condition}", values)
    selected = rows.ask(f"SELECT {COLUMNS} FROM rows WHERE {condition} ORDER BY {order} LIMIT ? OFFSET ?", [*values, limit, offset])
    return total, [card(row, rows.classes) for row in selected]


def pictures(uri: str, version: str, mask: bytes, classes: ClassTable, side: int = SIDE) -> Pictures:
    """Thumbnails of a photo and its mask; only of the mask if the photo is gone or has changed."""
    labels = masks.decode_png(mask)
    try:
        photo, labels_shown = picture(shards.fetch(uri, version)[0], labels)
        gone = ""
    except (OSError, ImageError) as error:
        photo, labels_shown, gone = None, labels, f"the photo cannot be shown: {error}"
    height, width = labels_shown.shape
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    encoded = None
    if photo is not None:
        buffer = io.BytesIO()
        Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=80)
        encoded = buffer.getvalue()
    return Pictures(encoded, _clear(labels_shown, size, classes), gone)


def _clear(labels: np.ndarray, size: tuple[int, int], classes: ClassTable) -> bytes:
    """A palette PNG with transparent class 0; colours above 256 classes repeat."""
    small = Image.fromarray((labels & 255).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    small.putpalette([value for colour in classes.display_colours[:256] for value in colour])
    buffer = io.BytesIO()
    small.save(buffer, "PNG", transparency=0, optimize=True)
    return buffer.getvalue()
