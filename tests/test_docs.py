"""The documentation: the site builds and loads nothing from elsewhere, links, pictures, commands and options on the pages exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from flows.cli import app
from tests import cli_page
from tests.material import make_results
from tests.notebooks import code_of

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md"), *(ROOT / "infra").glob("*.md")]
# Attributes by which a browser loads something while it shows a page; links (a href) are followed by people.
LOADED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("mkdocs", "mermaidx"):
        pytest.importorskip(package, reason=f"no {package}: pip install -e '.[docs]'")
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


def test_diagrams_are_pictures_and_no_code_on_the_site(site: Path) -> None:
    for page in (ROOT / "docs").glob("*.md"):
        built = (site / f"{page.stem}.html").read_text(encoding="utf-8")
        assert built.count('<svg id="diagram-') == page.read_text(encoding="utf-8").count("```mermaid\n"), page.name
    assert (site / "architecture.html").read_text(encoding="utf-8").count('<svg id="diagram-') == 2


def test_every_drill_has_a_line_on_what_it_shows() -> None:
    pages = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("reliability.md", "operations.md"))
    drills = [path for path in (ROOT / "tests").rglob("test_*.py") if re.search(r"mark\.(drill|nightly)\b", path.read_text())]
    assert len(drills) > 10
    assert [path.name for path in drills if path != Path(__file__) and f"{path.name}`" not in pages] == []


def test_links_of_the_readmes_and_the_pages_lead_to_files_and_headings() -> None:
    for name in (path.relative_to(ROOT).as_posix() for path in PAGES):
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


def test_pictures_of_the_pages_exist_are_small_and_none_is_left_over() -> None:
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^]]*\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
        if "://" not in target
    }
    kept = {path for path in (ROOT / "docs").rglob("*") if path.suffix in (".webp", ".png", ".jpg", ".svg")}
    assert shown == kept
    for path in kept:
        assert path.stat().st_size < 150_000, path.name
        if path.suffix == ".webp":
            with Image.open(path) as picture:
                assert picture.width >= 1500, path.name  # twice what a page shows


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of each `deeplab ...` line in the code blocks of the pages, up to what is the shell's."""
    for page in PAGES:
        if page == cli_page.PAGE:  # made of the commands themselves
            continue
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^(?: {4,})?deeplab (.+)$", text, re.MULTILINE):
            words = shlex.split(line, comments=True)
            yield page.name, words[: next((at for at, word in enumerate(words) if word in {"&", ">", "&&"}), len(words))]


def options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


def test_every_command_and_option_on_the_pages_exists() -> None:
    seen = 0
    for page, words in commands():
        command: Any = typer.main.get_command(app)
        known = options(command) | {"--help"}
        for word in words:
            if word.startswith("-"):
                name = word.partition("=")[0]
                assert name in known or not re.match("--?[a-z]", name), f"{page}: {name} of deeplab {' '.join(words)}"
            elif hasattr(command, "commands"):
                assert word in command.commands, f"{page}: deeplab {' '.join(words)}"
                command = command.commands[word]
                known |= options(command)
        seen += 1
    assert seen > 80


def test_the_tutorials_question_to_the_table_runs_as_printed(tmp_path: Path) -> None:
    make_results(tmp_path / "demo")
    (block,) = code_of(ROOT / "docs" / "tutorial.md")
    command = [sys.executable, "-c", block]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "photo_001.jpg 0.50 background cat" and len(done.stdout.splitlines()) == 3


def test_make_screenshots_says_in_a_line_what_it_lacks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tests import screenshots

    monkeypatch.setenv("PATH", "")
    assert screenshots.main() == 2
    assert re.fullmatch(r"make screenshots needs a browser \(apt-get install chromium\).*\n", capsys.readouterr().err)
