"""`deeplab verify`, `repair`, `compact`, `vacuum` and `drop-model`: upkeep of a results table."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from deeplab.errors import counted
from flows.commands.parameters import Json
from flows.commands.results import Exclude, Include, Model, Results, patterns
from flows.console.terminal import bar, print_json, stdout


def verify(
    results: Results,
    archive: Annotated[str | None, typer.Option(help="Also count the images of this archive without a row.")] = None,
    include: Include = None,
    exclude: Exclude = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Read all of RESULTS: every file exists and is readable, every mask decodes and fits its image, no image has two rows.

    Exit code 1 if something is wrong or, with --archive, missing.
    """
    from pipelines.table.results_table import ResultsTable
    from pipelines.upkeep import verification

    selection = patterns(archive, include, exclude)
    table = ResultsTable.open(results)
    with bar("files") as display:
        label = table.pick_model(model) if model else None
        result = verification.verify(
            table, archive, label, lambda done, total: display.update("verifying", done, total), **selection
        )
    if as_json:
        print_json(vars(result))
    else:
        for problem in result.problems:
            stdout.print(escape(problem), style="red", soft_wrap=True)
        if result.count > len(result.problems):
            stdout.print(f"... and {result.count - len(result.problems)} more")
        pending = "" if result.pending is None else f", {counted(result.pending, 'image')} of the archive without a row"
        place = f"{counted(result.rows, 'row')} in {counted(result.files, 'file')}"
        stdout.print(f"{place}: {counted(result.count, 'problem') if result.count else 'no problems'}{pending}")
    raise typer.Exit(1 if result.count or result.pending else 0)


def compact(
    results: Results,
    model: Model = None,
    target_mb: Annotated[int, typer.Option(min=1, help="Size of the files to make, in MiB.")] = 128,
) -> None:
    """Join small files, so that readers open fewer. Rows do not change; `deeplab vacuum` deletes the old files."""
    from pipelines.table.results_table import ResultsTable
    from pipelines.upkeep import compaction

    table = ResultsTable.open(results)
    done = compaction.compact(table, table.pick_model(model) if model else None, target_mb << 20)
    stdout.print(f"{counted(done['removed'], 'file')} became {done['added']}; version {table.version}")


def vacuum(
    results: Results,
    hours: Annotated[int, typer.Option(min=0, help="Keep files that a version of the last HOURS names.")] = 168,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the files; default: only list them.")] = False,
    as_json: Json = False,
) -> None:
    """List (or delete) files that no recent version of RESULTS names: of old versions, and of killed writers.

    --hours must be longer than any run, or files that a run has yet to commit are deleted.
    """
    from pipelines.table.results_table import ResultsTable
    from pipelines.upkeep import compaction

    files = compaction.vacuum(ResultsTable.open(results), hours, delete=delete)
    if as_json:
        print_json({"deleted": delete, "files": files})
        return
    for file in files[:20]:
        stdout.print(escape(file), soft_wrap=True)
    if len(files) > 20:
        stdout.print(f"... and {len(files) - 20} more")
    stdout.print(f"{counted(len(files), 'file')} {'deleted' if delete else 'can be deleted; --delete does that'}")


def repair(
    results: Results,
    forget: Annotated[
        bool,
        typer.Option("--forget", help="Also remove log entries whose rows are lost; the next segment does their images again."),
    ] = False,
) -> None:
    """Repair RESULTS if its log names files that do not exist, which `deeplab verify` finds; no file is deleted.

    Earlier versions wrote such tables for models with a space, %41, # or ? in their names. Exit code 1 if some are left.
    """
    from pipelines.table.results_table import ResultsTable
    from pipelines.upkeep import repair as repairing

    table = ResultsTable.open(results)
    done = repairing.repair(table, forget)
    for entry in done.left:
        stdout.print(escape(str(entry)), style="red", soft_wrap=True)
    stdout.print(
        f"{counted(done.restored, 'file')} with {counted(done.rows, 'row')} restored, {done.forgotten} removed, "
        f"{len(done.left)} left; version {table.version}"
    )
    raise typer.Exit(1 if done.left else 0)


def drop_model(
    results: Results,
    model: Annotated[
        str, typer.Argument(help="name@digest, or a name that only one model has.", metavar="MODEL", show_default=False)
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove all rows of MODEL from RESULTS. Earlier versions of the table keep them until `deeplab vacuum`."""
    from pipelines.table.results_table import ResultsTable
    from pipelines.table.table_errors import ResultsError
    from pipelines.upkeep import compaction

    table = ResultsTable.open(results)
    matching = [label for label in table.models() if model in (label, label.split("@")[0])]
    if len(matching) > 1:
        raise ResultsError(f"{model}: several models have this name; name one of {', '.join(matching)}")
    label = table.pick_model(model)
    if not yes and not typer.confirm(f"remove all rows of {label} from {table.uri}?"):
        raise typer.Exit(1)
    stdout.print(f"{counted(compaction.drop_model(table, label), 'row')} of {escape(label)} dropped; version {table.version}")
