"""The report page as people meet it: in a browser, from a file and served, wide and narrow, by mouse and by keyboard."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipelines.report.static_page import build
from pipelines.table.results_table import ResultsTable
from tests.flows.browser import SWITCHES, chromium
from tests.material import make_results

pytestmark = pytest.mark.drill
MODEL = "pets@0123456789ab"
PHOTOS, ERRORS = 60, 5


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    found = make_results(folder, PHOTOS, ERRORS)
    min((folder / "photos").rglob("*.jpg")).unlink()  # one photo is gone
    return found


@pytest.fixture(scope="module")
def static(results: Path) -> str:
    return build(ResultsTable.open(str(results)), results.parent / "report", MODEL, sample=200).page.as_uri()


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    program = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=program, args=SWITCHES)
        yield found
        found.close()


@contextmanager
def page_at(
    engine: Any, address: str, width: int = 1280, height: int = 900, scheme: str = "light", name: str = ""
) -> Iterator[Any]:
    """The page, loaded; afterwards nothing may have been asked for elsewhere, and nothing said on the console."""
    context = engine.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(30_000)
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on(
        "request",
        lambda asked: trouble.append(asked.url) if not asked.url.startswith(("file:", "data:", "http://127.0.0.1:")) else None,
    )
    page.goto(address)
    page.wait_for_function("() => document.querySelectorAll('#cards li').length > 0")
    try:
        yield page
        if name and (folder := os.environ.get("DEEPLAB_SCREENSHOTS")):
            page.screenshot(path=f"{folder}/report-{name}.png")
        assert trouble == []
    finally:
        context.close()


def cards(page: Any) -> int:
    return page.locator("#cards li").count()


def said(page: Any, pattern: str) -> None:
    """Wait until the count beneath the filters says so."""
    page.wait_for_function("pattern => new RegExp(pattern).test(document.getElementById('count').textContent)", arg=pattern)


@contextmanager
def served(results: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "flows.cli", "view", str(results)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as viewer:
        assert viewer.stdout is not None and viewer.stderr is not None
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+/", viewer.stdout.readline())
            assert address, viewer.stderr.read()
            yield address[0]
        finally:
            viewer.send_signal(signal.SIGINT)
        assert viewer.wait(20) in (0, 130) and "Traceback" not in viewer.stderr.read()


def walk(page: Any, whole: str) -> None:
    """What holds for the page from a file and for the one that is served."""
    said(page, rf"^{PHOTOS + ERRORS} images {whole}")
    first = cards(page)
    while cards(page) < PHOTOS + ERRORS:
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.wait_for_function("seen => document.querySelectorAll('#cards li').length > seen", arg=first)
        first = cards(page)
    page.select_option("#kind", "errors")
    said(page, rf"^{ERRORS} images")
    assert page.locator("#cards .why").count() == ERRORS
    page.select_option("#kind", "all")
    page.select_option("#class", label="dog")
    said(page, rf"^{PHOTOS // 2} images")
    page.select_option("#class", "")
    page.fill("#name", "PHOTO_007")
    said(page, r"^1 image ")
    page.fill("#name", "")
    said(page, rf"^{PHOTOS + ERRORS} images")
    page.select_option("#kind", "low")
    page.wait_for_function("() => /confidence 0.5/.test(document.querySelector('#cards li').textContent)")
    page.locator("#opacity").fill("10")
    over = page.locator("#cards .over").first
    page.wait_for_function("() => Number(getComputedStyle(document.querySelector('#cards .over')).opacity) < 0.11")
    assert over.evaluate("image => image.loading") == "lazy"


def test_the_gallery_scrolls_and_filters_from_a_file(engine: Any, static: str) -> None:
    with page_at(engine, static, name="desktop") as page:
        walk(page, "in this sample")
        assert page.locator("svg[role=img]").count() == 2


def test_the_gallery_scrolls_and_filters_over_the_whole_table(engine: Any, results: Path) -> None:
    with served(results) as address, page_at(engine, address) as page:
        said(page, "in the table")
        said(page, rf"^{PHOTOS + ERRORS} images")
        page.select_option("#kind", "errors")
        said(page, rf"^{ERRORS} images")
        page.select_option("#kind", "all")
        page.select_option("#class", label="dog")
        said(page, rf"^{PHOTOS // 2} images")
        page.wait_for_function(
            "() => [...document.querySelectorAll('#cards img')].slice(0, 4).every(image => image.naturalWidth > 0)"
        )


def test_one_reaches_everything_with_the_keyboard(engine: Any, static: str) -> None:
    with page_at(engine, static) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        for _ in range(5):
            page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('#cards') !== null")
        page.keyboard.press("Enter")
        page.wait_for_selector("#large[open]")
        name = page.text_content("#large-name")
        page.keyboard.press("ArrowRight")
        page.wait_for_function("before => document.getElementById('large-name').textContent !== before", arg=name)
        page.keyboard.press("ArrowLeft")
        page.wait_for_function("before => document.getElementById('large-name').textContent === before", arg=name)
        page.keyboard.press("Escape")
        page.wait_for_selector("#large", state="hidden")
        assert page.evaluate("document.activeElement.closest('#cards') !== null")
        unnamed = page.evaluate("[...document.querySelectorAll('select, input')].filter(field => !field.labels.length).length")
        assert unnamed == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_phone_in_light_and_dark(engine: Any, static: str, scheme: str) -> None:
    with page_at(engine, static, 375, 800, scheme, f"phone-{scheme}") as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        paper, ink = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
        light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink)]
        assert (light[0] > light[1]) == (scheme == "light") and abs(light[0] - light[1]) > 450
        page.locator("#gallery").scroll_into_view_if_needed()
        page.locator("#cards button").nth(2).click()
        page.wait_for_selector("#large[open]")
        box = page.locator("#large").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 375


def test_a_photo_that_is_gone_says_so_on_its_card(engine: Any, static: str) -> None:
    with page_at(engine, static) as page:
        page.fill("#name", "photo_001")
        said(page, "^1 image ")
        assert "cannot be shown" in page.text_content("#cards .why")
        assert page.locator("#cards .over").count() == 1
