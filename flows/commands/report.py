"""`deeplab report` and `deeplab view`: a results table as a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from flows.commands.parameters import Json
from flows.commands.results import Model, Results
from flows.console.terminal import bar, print_json, stderr, stdout


def report(
    results: Results,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; an earlier report there is replaced.")] = Path(
        "report"
    ),
    model: Model = None,
    sample: Annotated[
        int, typer.Option(min=1, max=5000, help="Images in the gallery: an even sample, the least confident, errors.")
    ] = 200,
    as_json: Json = False,
) -> None:
    """A page of one model's rows: runs, throughput, classes, confidence, errors, and a gallery of photos and masks.

    It needs no server and asks nothing of the network: open OUT/index.html, or copy the folder anywhere.

    [dim]deeplab report results/ -o report/[/]
    """
    from pipelines.report.static_page import build
    from pipelines.table.results_table import ResultsTable

    table = ResultsTable.open(results)
    with bar("photos") as display:
        made = build(table, out, table.pick_model(model), sample, lambda done, total: display.update("pictures", done, total))
    if as_json:
        print_json({**made.facts.json(), "page": str(made.page), "cards": made.cards, "gone": made.gone})
        return
    for uri, reason in list(made.gone.items())[:10]:
        stderr.print(f"{escape(uri)}: {escape(reason)}")
    if len(made.gone) > 10:
        stderr.print(f"... and {len(made.gone) - 10} more photos that cannot be shown; the page has their masks")
    stdout.print(f"{made.facts.images} images, {made.cards} of them in the gallery: {escape(str(made.page))}", soft_wrap=True)


def view(
    results: Results,
    model: Model = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
) -> None:
    """The same page with all rows of the table, served on this machine alone until Ctrl-C."""
    from pipelines.report.server import serve
    from pipelines.table.results_table import ResultsTable

    table = ResultsTable.open(results)
    label = table.pick_model(model)
    serve(table, label, port, lambda url: stdout.print(f"{escape(label)}: {url}  (Ctrl-C ends it)", soft_wrap=True))
