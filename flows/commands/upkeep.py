"""`deeplab verify`, `repair`, `compact`, `vacuum` and `drop-model`: keeping a results table in order."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from flows.commands.parameters import Json
from flows.commands.results import Exclude, Include, Model, Results, patterns
from flows.console.terminal import bar, print_json, stdout
from pipelines.upkeep import compaction


def verify(
    results: Results,
    archive: Annotated[str | None, typer.Option(help="Also count the images of this archive that have no row.")] = None,
    include: Include = None,
    exclude: Exclude = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Read all of RESULTS: every file there and readable, every mask decodes and fits its image, no image twice.

    Exits with 1 when something is wrong or, with --archive, missing.
    """
    from pipelines.table.results_table import ResultsTable
    from pipelines.upkeep import verification

    chosen = patterns(archive, include, exclude)
    table = ResultsTable.open(results)
    with bar("files") as display:
        label = table.pick_model(model) if model else None
        found = verification.verify(table, archive, label, lambda done, total: display.update("verifying", done, total), **chosen)
    if as_json:
        print_json(vars(found))
    else:
        for problem in found.problems:
            stdout.print(escape(problem), style="red", soft_wrap=True)
        if found.count > len(found.problems):
            stdout.print(f"... and {found.count - len(found.problems)} more")
        pending = "" if found.pending is None else f", {found.pending} images of the archive without a row"
        stdout.print(
            f"{found.rows} rows in {found.files} files: {found.count or 'no'} problem{'s' if found.count != 1 else ''}{pending}"
        )
    raise typer.Exit(1 if found.count or found.pending else 0)


def compact(
    results: Results,
    model: Model = None,
    target_mb: Annotated[int, typer.Option(min=1, help="Size of the files to make, in MiB.")] = 128,
) -> None:
    """Join small files, so that readers open fewer. Rows stay as they are; old files go with `deeplab vacuum`."""
    from pipelines.table.results_table import ResultsTable

    table = ResultsTable.open(results)
    done = compaction.compact(table, table.pick_model(model) if model else None, target_mb << 20)
    stdout.print(f"{done['removed']} files became {done['added']}; version {table.version}")


def vacuum(
    results: Results,
    hours: Annotated[int, typer.Option(min=0, help="Keep what versions of the last so many hours name.")] = 168,
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; without it they are only listed.")] = False,
    as_json: Json = False,
) -> None:
    """Files that no recent version of RESULTS names: of old versions, and of writers that were killed.

    No run may take longer than --hours, or files that it has yet to commit would go.
    """
    from pipelines.table.results_table import ResultsTable

    files = compaction.vacuum(ResultsTable.open(results), hours, delete=delete)
    if as_json:
        print_json({"deleted": delete, "files": files})
        return
    for file in files[:20]:
        stdout.print(escape(file), soft_wrap=True)
    if len(files) > 20:
        stdout.print(f"... and {len(files) - 20} more")
    stdout.print(f"{len(files)} files {'deleted' if delete else 'could go; --delete deletes them'}")


def repair(
    results: Results,
    forget: Annotated[
        bool, typer.Option("--forget", help="Also take out entries whose rows are gone; the next segment does their images again.")
    ] = False,
) -> None:
    """Mend RESULTS where its log names files that are not there, as `deeplab verify` says; no file is deleted.

    Earlier versions made such tables with models whose names hold a space, %41, # or ?. Exits with 1 when some are left.
    """
    from pipelines.table.results_table import ResultsTable
    from pipelines.upkeep import repair as mending

    table = ResultsTable.open(results)
    done = mending.repair(table, forget)
    for entry in done.left:
        stdout.print(escape(str(entry)), style="red", soft_wrap=True)
    stdout.print(
        f"{done.restored} files with {done.rows} rows restored, {done.forgotten} taken out, {len(done.left)} left; "
        f"version {table.version}"
    )
    raise typer.Exit(1 if done.left else 0)


def drop_model(
    results: Results,
    model: Annotated[str, typer.Argument(help="name@digest, or a name that only one model has.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take all rows of MODEL out of RESULTS. Earlier versions keep them until `deeplab vacuum`."""
    from pipelines.table.results_table import ResultsTable
    from pipelines.table.table_errors import ResultsError

    table = ResultsTable.open(results)
    matching = [label for label in table.models() if model in (label, label.split("@")[0])]
    if len(matching) > 1:
        raise ResultsError(f"{model}: name one of {', '.join(matching)}")
    label = table.pick_model(model)
    if not yes and not typer.confirm(f"take all rows of {label} out of {table.uri}?"):
        raise typer.Exit(1)
    stdout.print(f"{compaction.drop_model(table, label)} rows of {escape(label)} dropped; version {table.version}")
