"""`deeplab status`, `show` and `export`: looking at a results table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from deeplab.errors import counted
from flows.commands.parameters import Json
from flows.console.terminal import bar, plain_table, print_json, stderr, stdout
from pipelines.exports.formats import FORMATS

Results = Annotated[str, typer.Argument(metavar="RESULTS", help="Folder or s3:// prefix of the results table.", show_default=False)]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Model name or name@digest; default: the last that wrote to the table.")
]
Include = Annotated[list[str] | None, typer.Option(help="--include of the run that segmented ARCHIVE. Repeatable.")]
Exclude = Annotated[list[str] | None, typer.Option(help="--exclude of the run that segmented ARCHIVE. Repeatable.")]


def patterns(archive: str | None, include: list[str] | None, exclude: list[str] | None) -> dict[str, tuple[str, ...]]:
    """The patterns as keyword arguments of what counts an archive. BadParameter for patterns without an archive."""
    for option, names in (("--include", include), ("--exclude", exclude)):
        if names and archive is None:
            raise typer.BadParameter("needs --archive, whose images it selects", param_hint=option)
    return {"include": tuple(include or ()), "exclude": tuple(exclude or ())}


def status(
    results: Results,
    archive: Annotated[str | None, typer.Option(help="Also count the images of this archive without a row.")] = None,
    include: Include = None,
    exclude: Exclude = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Print what RESULTS holds: models, rows, errors by reason, and pending images of an archive."""
    from pipelines.table.results_table import ResultsTable
    from pipelines.upkeep.status import status as read

    contents = read(ResultsTable.open(results), archive, model, **patterns(archive, include, exclude))
    if as_json:
        print_json(contents)
        return
    stdout.print(f"{escape(contents['results'])}  version {contents['version']}")
    table = plain_table("model", "ok", "errors", "mean confidence", "last row (UTC)", left=("last row (UTC)",))
    for entry in contents["models"]:
        confidence = "-" if entry["mean_confidence"] is None else f"{entry['mean_confidence']:.3f}"
        table.add_row(
            escape(entry["model"]), str(entry["ok"]), str(entry["errors"]), confidence, entry["last"][:19].replace("T", " ")
        )
    stdout.print(table if contents["models"] else "no rows yet")
    for entry in contents["models"]:
        for reason, count in entry["errors_by_reason"].items():
            stdout.print(f"  {count} x {escape(reason)}  [dim]({escape(entry['model'])})[/]")
    if archive is not None:
        found = contents["archive"]
        stdout.print(
            f"{escape(found['archive'])}: {counted(found['images'], 'image')}, {found['done']} done, {found['pending']} pending"
        )


def show(
    results: Results,
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=500, help="Photos on the sheet.")] = 12,
    out: Annotated[Path, typer.Option("-o", "--out", help="Picture to write (.png or .jpg).")] = Path("sheet.png"),
    model: Model = None,
    worst: Annotated[bool, typer.Option("--worst", help="The least confident ones instead of an even sample.")] = False,
) -> None:
    """Write a contact sheet: pairs of photo and mask overlay, with a legend."""
    from pipelines.exports import sample_sheet
    from pipelines.table.results_table import ResultsTable

    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise typer.BadParameter(f"{out}: .png or .jpg is accepted", param_hint="--out")
    table = ResultsTable.open(results)
    shown = sample_sheet.show(table, table.pick_model(model), out, count, worst)
    print_left_out(shown.skipped, len(shown.skipped))
    stdout.print(f"{counted(shown.files, 'photo')} on {escape(str(out))}")


def print_left_out(skipped: Mapping[str, str], count: int) -> None:
    """One line for each reason, however many images have it. `skipped`: URI -> reason, of the first of `count` images."""
    by_reason: dict[str, list[str]] = {}
    for uri, reason in skipped.items():
        by_reason.setdefault(reason.replace(uri, "it"), []).append(uri)
    for reason, uris in by_reason.items():
        places = uris[0] if len(uris) == 1 else f"{counted(len(uris), 'image')}, such as {uris[0]}"
        stderr.print(f"left out {escape(places)}: {escape(reason)}", soft_wrap=True)
    if count > len(skipped):
        stderr.print(f"left out {count - len(skipped):,} more")


def _format(name: str) -> str:
    if name not in FORMATS:
        raise typer.BadParameter(f"{name!r}: {', '.join(FORMATS)} are accepted")
    return name


def export(
    results: Results,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write to.", show_default=False)],
    form: Annotated[
        str, typer.Option("--format", "-f", parser=_format, metavar="FORMAT", help="Format of the files, from the list above.")
    ] = "png",
    model: Model = None,
    as_json: Json = False,
) -> None:
    from pipelines.exports import export as exporting
    from pipelines.table.results_table import ResultsTable

    table = ResultsTable.open(results)
    label = table.pick_model(model)
    total = table.query("SELECT count(DISTINCT uri) FROM results WHERE status = 'ok'", model=label).fetchone()
    with bar("masks") as display:
        done = exporting.export(
            table, label, folder, form, lambda count: display.update("exporting", count, total[0] if total else None)
        )
    if as_json:
        print_json({"format": form, "folder": str(folder), "model": label, **asdict(done)})
    else:
        print_left_out(done.skipped, done.left_out)
        stdout.print(f"{counted(done.files, 'file')} in {escape(str(folder))}")
    if done.left_out and not done.images:
        stderr.print("[red]error[/]: no image could be exported")
        raise typer.Exit(1)


export.__doc__ = f"""Write masks as files, for people and for other programs. Of each image only the newest mask is written.

{chr(10).join(f"[bold]{name:14}[/] {form.line}" for name, form in FORMATS.items())}

Images that are gone, or that the format cannot hold, are left out and named with the reason. Exit code 1 if no image is left.
"""
