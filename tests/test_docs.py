"""The documentation: the site builds without a warning and loads nothing from elsewhere, and the README's links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tests import cli_page

ROOT = Path(__file__).resolve().parents[1]
# Attributes by which a browser loads something while it shows a page; links (a href) are followed by people.
LOADED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="no mkdocs: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr  # links and anchors between pages, names in the reference
    return folder


class Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in LOADED and (value := dict(attributes).get(LOADED[tag])):
            self.found.append(value)


def test_every_page_is_built_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {path.stem for path in site.glob("*.html")}
    for page in site.rglob("*.html"):
        reader = Loads()
        reader.feed(page.read_text(encoding="utf-8"))
        assert len(reader.found) > 3  # the theme's own style sheets and scripts
        assert [value for value in reader.found if "//" in value] == []
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_all_pages_are_in_the_navigation_and_the_reference_has_what_it_names(site: Path) -> None:
    start = (site / "index.html").read_text(encoding="utf-8")
    for path in (ROOT / "docs").glob("*.md"):
        assert f'href="{path.stem}.html"' in start or path.stem == "index"
    reference = (site / "reference.html").read_text(encoding="utf-8")
    named = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    assert len(named) > 5
    for name in named:
        assert f'id="{name}"' in reference
    assert "Seconds between commits" in reference  # what the options' schema says of them


def test_every_drill_has_a_line_on_what_it_shows() -> None:
    pages = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("reliability.md", "operations.md"))
    drills = [path for path in (ROOT / "tests").rglob("test_*.py") if re.search(r"mark\.(drill|nightly)\b", path.read_text())]
    assert len(drills) > 10
    assert [path.name for path in drills if path != Path(__file__) and f"{path.name}`" not in pages] == []


def test_links_of_the_readmes_and_the_pages_lead_to_files_and_headings() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")]
    for name in (path.relative_to(ROOT).as_posix() for path in pages):
        page = ROOT / name
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if target.startswith(("http://", "https://")):
                continue
            path, _, heading = target.partition("#")
            there = page.parent / path if path else page
            assert there.exists(), f"{name}: {target}"
            if heading:
                titles = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
                assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, (
                    f"{name}: {target}"
                )


def test_each_photo_of_the_demo_is_small_and_has_its_author_source_and_free_licence_beside_it() -> None:
    folder = ROOT / "examples" / "photos"
    photos = {path.name: path for path in folder.iterdir() if path.suffix != ".md"}
    credits = re.findall(r"^\| `(\w+\.\w+)` \|(.*)\|$", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(name for name, _ in credits) == sorted(photos)
    for name, row in credits:
        *named, licence = (cell.strip() for cell in row.split(" | "))
        assert len(named) == 3 and all(named), name  # what it shows, author, source
        assert re.search(r"^public domain$|^\[(CC0|CC BY|CC BY-SA) \d\.\d\]\(https://creativecommons.org/", licence), name
        with Image.open(photos[name]) as photo:
            assert (photo.format, photo.mode) == ("JPEG", "RGB") and max(photo.size) <= 640, name
            assert not photo.getexif(), name
    assert sum(path.stat().st_size for path in photos.values()) < 1_000_000
    demo = re.search(r"^demo: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert demo and "segment examples/photos " in demo[1] and f"-n {len(photos)} " in demo[1]  # the sheet shows all of them


def test_the_page_of_commands_is_their_help() -> None:
    assert cli_page.PAGE.read_text(encoding="utf-8") == cli_page.page(), "stale; run python -m tests.cli_page"
