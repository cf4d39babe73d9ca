"""`deeplab report` and `deeplab view`: a results table as a page in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from deeplab.errors import counted
from flows.commands.parameters import Json
from flows.commands.results import Model, Results, print_left_out
from flows.console.terminal import bar, print_json, stdout


def report(
    results: Results,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; replaces an earlier report there.")] = Path("report"),
    model: Model = None,
    sample: Annotated[
        int, typer.Option(min=1, max=5000, help="Images in the gallery: an even sample, the least confident, and errors.")
    ] = 200,
    as_json: Json = False,
) -> None:
    """Write a page of one model's rows: runs, throughput, classes, confidence, errors, and a gallery of photos and masks.

    The page needs no server and no network: open OUT/index.html, or copy the folder anywhere.

    [dim]deeplab report results/ -o report/[/]
    """
    from pipelines.report.static_page import build
    from pipelines.table.results_table import ResultsTable

    table = ResultsTable.open(results)
    with bar("photos") as display:
        written = build(table, out, table.pick_model(model), sample, lambda done, total: display.update("pictures", done, total))
    if as_json:
        print_json({**written.facts.json(), "page": str(written.page), "cards": written.cards, "gone": written.gone})
        return
    print_left_out(written.gone, len(written.gone))
    images = counted(written.facts.images, "image")
    stdout.print(f"{images}, {written.cards} of them in the gallery: {escape(str(written.page))}", soft_wrap=True)


def view(
    results: Results,
    model: Model = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
) -> None:
    """Serve the page of `deeplab report` with all rows of the table, to this machine only, until Ctrl-C."""
    from pipelines.report.server import serve
    from pipelines.table.results_table import ResultsTable

    table = ResultsTable.open(results)
    label = table.pick_model(model)
    serve(table, label, port, lambda url: stdout.print(f"{escape(label)}: {url}  (Ctrl-C ends it)", soft_wrap=True))
