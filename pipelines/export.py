"""Masks out of the table: files that keep the images' names, COCO RLE, a contact sheet."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow.dataset as pads
from PIL import Image

from deeplab import masks
from deeplab.images import MAX_PIXELS, ImageError, decode, header
from deeplab.sheet import contact_sheet
from pipelines import geotiff, shards, storage
from pipelines.results import ResultsError, ResultsTable
from pipelines.windows import reduced

Format = Literal["png", "overlay", "geotiff", "coco-rle"]
SUFFIXES = {"png": ".png", "overlay": ".jpg", "geotiff": ".tif"}
# Of images that are too large to be decoded whole, pictures show about as many, evenly spaced.
SHOWN_PIXELS = 16_000_000


@dataclass
class Exported:
    """`skipped`: images of which no picture could be made any more, with the reason."""

    files: int = 0
    skipped: dict[str, str] = field(default_factory=dict)


def name_of(uri: str) -> str:
    """The path inside the bucket or on the disk, for people."""
    path, mark, member = uri.partition("#") if shards.split(uri) else (uri, "", "")
    whole = f"{path}/{member}" if mark else path
    return unquote(urlsplit(whole).path) if uri.startswith("file://") else whole


def rows(table: ResultsTable, model: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The ok rows of a model, one by one; of an image with several versions only the one segmented last."""
    older = table.query(
        """
        SELECT uri, version FROM results WHERE status = 'ok'
        QUALIFY row_number() OVER (PARTITION BY uri ORDER BY segmented_at DESC, version) > 1
        """,
        model=model,
    ).fetchall()
    outdated = set(older)
    scanner = table.dataset(model).scanner(
        columns=list(dict.fromkeys([*columns, "uri", "version"])), filter=pads.field("status") == "ok", batch_size=256
    )
    for batch in scanner.to_batches():
        for row in batch.to_pylist():
            if (row["uri"], row["version"]) not in outdated:
                yield row


def export(
    table: ResultsTable, model: str, folder: Path, form: Format, report: Callable[[int], None] = lambda done: None
) -> Exported:
    """Write the masks of `model` below `folder`.

    "png": 8-bit palette PNG named as the image, in the image's own folder structure; "overlay": the photo with the
    mask on it, as JPEG; "geotiff": TIFF with the coordinate system and transform of an image that has them; "coco-rle":
    one coco.json with compressed RLE per image and class. Two images that differ only in their extension keep it
    (a.jpg.png). Raises ResultsError when there is nothing to export, or an image would be overwritten.
    """
    if form == "geotiff":
        geotiff.require()
    span = table.query("SELECT min(uri), max(uri) FROM results WHERE status = 'ok'", model=model).fetchone()
    if span is None or span[0] is None:
        raise ResultsError(f"{table.uri}: no ok rows of model {model} to export")
    # Every uri lies between the smallest and the largest, so what these two share all share.
    root = os.path.commonpath([os.path.dirname(name_of(uri)) for uri in span])
    folder.mkdir(parents=True, exist_ok=True)
    classes = table.classes(model)
    result = Exported()
    if form == "coco-rle":
        _coco(table, model, folder / "coco.json", root, result, report)
        return result
    taken: set[Path] = set()
    for row in rows(table, model, ["mask"]):
        relative = Path(os.path.relpath(name_of(row["uri"]), root))
        target = folder / relative.with_suffix(SUFFIXES[form])
        if target in taken:
            target = folder / f"{relative}{SUFFIXES[form]}"
        taken.add(target)
        if storage.canonical(str(target)) == row["uri"]:
            raise ResultsError(f"{folder}: {target.name} is the image itself there; choose another folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        if form == "png":
            target.write_bytes(row["mask"])
        elif (encoded := encoded_photo(row["uri"], row["version"], result)) is None:
            continue
        else:
            labels = masks.decode_png(row["mask"])
            try:
                if form == "geotiff":
                    geotiff.write(target, labels, classes, encoded)
                else:
                    Image.fromarray(masks.overlay(*picture(encoded, labels), classes)).save(target, quality=90)
            except ImageError as error:
                result.skipped[row["uri"]] = f"the photo cannot be used: {error}"
                continue
        result.files += 1
        report(result.files)
    return result


def encoded_photo(uri: str, version: str, result: Exported) -> bytes | None:
    """The bytes of the photo behind a mask; None (and a reason in `result`) when it is gone."""
    try:
        return shards.fetch(uri, version)[0]
    except OSError as error:
        result.skipped[uri] = f"the photo cannot be read: {error}"
        return None


def picture(encoded: bytes, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The photo with its mask, both reduced where the photo is too large to be decoded. ImageError: it is another one now."""
    told = header(encoded)
    if told is not None and told.pixels > MAX_PIXELS:
        size, step = (told.height, told.width), math.ceil(math.sqrt(told.pixels / SHOWN_PIXELS))
        image = reduced(encoded, told, step) if size == labels.shape else None
    else:
        image, step = decode(encoded), 1
        size = image.shape[:2]
    if image is None or size != labels.shape:
        raise ImageError(f"it is {size} now, the mask {labels.shape}")
    return image, np.ascontiguousarray(labels[::step, ::step])


def _coco(table: ResultsTable, model: str, path: Path, root: str, result: Exported, report: Callable[[int], None]) -> None:
    """Stream COCO JSON: annotations to a side file while images are listed, so that memory does not grow with masks."""
    names = table.classes(model).names
    annotations = path.with_suffix(".annotations")
    count = 0
    with path.open("w", encoding="utf-8") as out, annotations.open("w+", encoding="utf-8") as side:
        out.write('{"categories": ' + json.dumps([{"id": i, "name": name} for i, name in enumerate(names) if i]) + ',\n"images": [')
        for number, row in enumerate(rows(table, model, ["mask", "height", "width"]), 1):
            relative = os.path.relpath(name_of(row["uri"]), root)
            image = {"id": number, "file_name": relative, "height": row["height"], "width": row["width"]}
            out.write((",\n" if number > 1 else "\n") + json.dumps(image))
            for annotation in masks.coco_annotations(masks.decode_png(row["mask"]), number):
                side.write((",\n" if count else "\n") + json.dumps({"id": count + 1, **annotation}))
                count += 1
            report(number)
        out.write('],\n"annotations": [')
        side.seek(0)
        while part := side.read(1 << 20):
            out.write(part)
        out.write("]}\n")
    annotations.unlink()
    result.files = 1


def show(table: ResultsTable, model: str, path: Path, count: int, worst: bool = False) -> Exported:
    """A contact sheet of `count` photos and overlays: an even sample, or those of lowest confidence.

    Photos that are gone are passed over. Raises ResultsError when none can be shown.
    """
    order = "confidence, uri" if worst else "hash(uri)"
    found = table.query(
        f"SELECT uri, version, mask, confidence FROM results WHERE status = 'ok' ORDER BY {order} LIMIT ?", [2 * count], model
    ).fetchall()
    result = Exported()
    entries: list[tuple[str, np.ndarray, np.ndarray]] = []
    for uri, version, mask, confidence in found:
        if len(entries) == count:
            break
        if (encoded := encoded_photo(uri, version, result)) is None:
            continue
        try:
            pair = picture(encoded, masks.decode_png(mask))
        except ImageError as error:
            result.skipped[uri] = f"the photo cannot be used: {error}"
            continue
        entries.append((f"{Path(name_of(uri)).name}   confidence {confidence:.2f}", *pair))
    if not entries:
        raise ResultsError(
            f"{table.uri}: no photo of model {model} can be shown ({len(found)} ok rows, {len(result.skipped)} unreadable)"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(entries, table.classes(model), model).save(path)
    result.files = len(entries)
    return result
