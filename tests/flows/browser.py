"""A headless Chromium that looks at the Prefect UI as a person does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 120_000  # ms


def chromium() -> str:
    """The program; the test is skipped where there is none."""
    pytest.importorskip("playwright.sync_api", reason="no playwright, which drives the browser: pip install playwright")
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        pytest.skip(f"no browser, none of {', '.join(PROGRAMS)}: apt-get install chromium")
    return found


class Browser:
    """Opens pages of one UI; screenshots go to `pictures`, or to DEEPLAB_SCREENSHOTS, to be looked at."""

    def __init__(self, context: Any, base: str, pictures: Path) -> None:
        self.context, self.base = context, base
        self.pictures = Path(os.environ.get("DEEPLAB_SCREENSHOTS") or pictures)
        self.pictures.mkdir(parents=True, exist_ok=True)

    def open(self, path: str, *texts: str, name: str) -> Any:
        """The page once all `texts` are on it."""
        page = self.context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{self.base}{path}", wait_until="domcontentloaded")
        try:
            for text in texts:
                page.get_by_text(text).first.wait_for(state="attached")
        finally:
            self.shoot(page, name)
        return page

    def shoot(self, page: Any, name: str) -> None:
        page.wait_for_timeout(500)  # fonts and fades
        page.screenshot(path=self.pictures / f"{name}.png")


@contextmanager
def browser(program: str, base: str, pictures: Path, width: int = 1400, height: int = 1000, scale: int = 1) -> Iterator[Browser]:
    """A browser with a profile of its own, for the body. `scale`: pixels of a picture for each of the page's."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        context = play.chromium.launch_persistent_context(
            pictures / "profile", executable_path=program, args=SWITCHES,
            viewport={"width": width, "height": height}, device_scale_factor=scale,
        )  # fmt: skip
        try:
            yield Browser(context, base, pictures)
        finally:
            context.close()
