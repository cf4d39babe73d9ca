"""The page itself: rendered from the facts, and written to a folder with its thumbnails."""

from __future__ import annotations

import base64
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from deeplab.classes import ClassTable
from deeplab.contact_sheet import bright
from deeplab.errors import UserError
from deeplab.files import LocalFiles, mark_output
from deeplab.json_text import json_text
from pipelines.report import gallery
from pipelines.report.figures import Facts, gather
from pipelines.table.results_table import ResultsTable
from pipelines.table.snapshot import Snapshot

HERE = Path(__file__).parent
MARK = "deeplab-report.json"  # names a folder as a report, which the next one may replace


class ReportError(UserError):
    """The report cannot be written; the message says where and why."""


@dataclass
class Built:
    """What was written: the page, cards with pictures, and photos that could not be shown, with the reason."""

    page: Path
    facts: Facts
    cards: int
    gone: dict[str, str]


def build(
    table: ResultsTable, folder: Path, model: str, sample: int = 200, watch: Callable[[int, int], None] = lambda done, total: None
) -> Built:
    """Write the report of one model's rows, as the table is now, to `folder`: index.html and pictures/.

    An earlier report there is replaced when the new one is whole; any other folder is left alone. Raises ReportError,
    ResultsError. `watch` hears of pictures done and of all.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MARK).is_file())):
        raise ReportError(f"{folder}: exists and is no report; choose an empty or new folder")
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
            cards = gallery.chosen(rows, sample)
            gone = _write_pictures(rows, cards, staging / "pictures", watch)
            text = render(facts, rows.classes, {"cards": cards, "total": facts.images})
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


def _write_pictures(rows: Snapshot, cards: list[dict[str, Any]], folder: Path, watch: Callable[[int, int], None]) -> dict[str, str]:
    """Thumbnails of the cards, whose `photo` and `mask` are set to their places; photos that are gone, with the reason."""
    folder.mkdir()
    good = [card for card in cards if card["error"] is None]
    masks = rows.masks([card["id"] for card in good])
    gone = {}
    for done, card in enumerate(good, 1):
        watch(done, len(good))
        if card["id"] not in masks:
            continue
        uri, version, mask = masks[card["id"]]
        made = gallery.pictures(uri, version, mask, rows.classes)
        for kind, data, suffix in (("photo", made.photo, "jpg"), ("mask", made.mask, "png")):
            if data is not None:
                name = f"{card['id']}-{kind}.{suffix}"
                (folder / name).write_bytes(data)
                card[kind] = f"pictures/{name}"
        if made.gone:
            card["gone"], gone[uri] = made.gone, made.gone
    return gone


def render(facts: Facts, classes: ClassTable, data: dict[str, Any]) -> str:
    """The page as HTML. `data`: what the gallery's script finds in the page: "cards", or "rows", where to ask for them."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"when": _when, "share": lambda value: f"{100 * value:.2f} %", "span": _span}
    known = [
        {"name": name, "colour": "#{:02x}{:02x}{:02x}".format(*bright(colour))}
        for name, colour in zip(classes.names, classes.colours, strict=True)
    ]
    told = json_text({**data, "classes": known})
    # Inside a script element only "</" and "<!--" end or change it; as escapes they are the same JSON.
    safe = told.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    style, script = ((HERE / "page" / name).read_text(encoding="utf-8") for name in ("style.css", "gallery.js"))
    return environment.get_template("index.html").render(
        facts=facts, classes=known, data=safe, style=style, script=script, style_hash=_hash(style), script_hash=_hash(script)
    )


def _hash(text: str) -> str:
    """By which the page's policy knows its own style and script, and runs no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _when(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _span(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{seconds:.1f} s"
