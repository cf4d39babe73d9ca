"""The page, rendered from the facts and written to a folder with its thumbnails."""

from __future__ import annotations

import base64
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypedDict

import jinja2

from deeplab.classes import ClassTable
from deeplab.errors import UserError
from deeplab.files import LocalFiles, mark_output
from deeplab.json_text import json_text
from pipelines.report import gallery
from pipelines.report.figures import Facts, gather
from pipelines.report.gallery import Card
from pipelines.table.results_table import ResultsTable
from pipelines.table.snapshot import Snapshot

HERE = Path(__file__).parent
MARK = "deeplab-report.json"  # marks a folder as a report, which the next one may replace


class ReportError(UserError):
    """The report cannot be written; the message says where and why."""


class GalleryData(TypedDict, total=False):
    """The input of the gallery's script: `cards` and the `total` number of images, or `rows`, the URL that serves cards."""

    cards: list[Card]
    total: int
    rows: str


@dataclass
class Built:
    """The written report: the page, its figures, the number of cards, and photos that could not be shown, with the reason."""

    page: Path
    facts: Facts
    cards: int
    gone: dict[str, str]


def build(
    table: ResultsTable, folder: Path, model: str, sample: int = 200, watch: Callable[[int, int], None] = lambda done, total: None
) -> Built:
    """Write the report of one model's rows, as the table is now, to `folder`: index.html and pictures/.

    The complete report replaces an earlier one there; any other folder is refused. Raises ReportError, ResultsError. `watch` gets
    the number of pictures done and in all.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MARK).is_file())):
        raise ReportError(f"{folder}: exists and is not a report; choose an empty or new folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ReportError(f"{folder}: cannot be written ({error.strerror})") from error
    try:
        staging.chmod(0o755)
        mark_output(LocalFiles(staging))
        with Snapshot(table, model) as rows:
            facts = gather(rows)
            cards = gallery.sample(rows, sample)
            gone = _write_pictures(rows, cards, staging / "pictures", watch)
            text = render(facts, rows.classes, GalleryData(cards=cards, total=facts.images))
        (staging / "index.html").write_text(text, encoding="utf-8")
        (staging / MARK).write_text(json_text(facts.json(), indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        staging.rename(folder)
    except OSError as error:
        raise ReportError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Built(folder / "index.html", facts, len(cards), gone)


def _write_pictures(rows: Snapshot, cards: list[Card], folder: Path, watch: Callable[[int, int], None]) -> dict[str, str]:
    """Write the thumbnails of the cards and set `photo` and `mask` to their URLs; returns photos that are gone, with the reason."""
    folder.mkdir()
    good = [card for card in cards if card["error"] is None]
    masks = rows.masks([card["id"] for card in good])
    gone = {}
    for done, card in enumerate(good, 1):
        watch(done, len(good))
        if card["id"] not in masks:
            continue
        uri, version, mask = masks[card["id"]]
        pair = gallery.pictures(uri, version, mask, rows.classes)
        card["mask"] = f"pictures/{card['id']}-mask.png"
        (folder.parent / card["mask"]).write_bytes(pair.mask)
        if pair.photo is not None:
            card["photo"] = f"pictures/{card['id']}-photo.jpg"
            (folder.parent / card["photo"]).write_bytes(pair.photo)
        if pair.gone:
            card["gone"], gone[uri] = pair.gone, pair.gone
    return gone


def render(facts: Facts, classes: ClassTable, data: GalleryData) -> str:
    """The page as HTML, with `data` for the gallery's script."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"when": _when, "share": lambda value: f"{100 * value:.2f} %", "span": _span}
    legend = [
        {"name": name, "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
        for name, colour in zip(classes.names, classes.display_colours, strict=True)
    ]
    text = json_text({**data, "classes": legend})
    # "</" and "<!--" would end or change the script element; escaped they are the same JSON.
    safe = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    style, script = ((HERE / "page" / name).read_text(encoding="utf-8") for name in ("style.css", "gallery.js"))
    return environment.get_template("index.html").render(
        facts=facts, classes=legend, data=safe, style=style, script=script, style_hash=_hash(style), script_hash=_hash(script)
    )


def _hash(text: str) -> str:
    """The hash by which the page's security policy admits its own style and script, and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _when(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _span(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{seconds:.1f} s"
