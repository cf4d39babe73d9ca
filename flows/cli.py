"""The `deeplab` command."""

from __future__ import annotations

import io
import signal
import sys

import typer
from rich.console import Console
from rich.markup import escape

from deeplab.errors import UserError
from flows.commands import architectures, benchmark, dataset, evaluate, report, results, run, segment, serve, train, upkeep

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""DeepLab over whole image archives: one mask per image, in one table.

    [bold]deeplab segment[/] photos/ results/     masks for a folder, exactly one row per image
    [bold]deeplab show[/] results/ -o sheet.png   look at some of them
    [bold]deeplab status[/] results/              what is in the table; [bold]report[/] and [bold]view[/] show it in a browser
    [bold]deeplab export[/] results/ masks/       PNG files, or one of nine other formats
    [bold]deeplab benchmark[/] my-model           what it costs on this machine, and what an archive will take
    [bold]deeplab dataset check[/] dataset/        is every labelled pair sound
    [bold]deeplab train[/] dataset/ my-model/     a model of your own; then segment --model my-model
    [bold]deeplab evaluate[/] my-model/ dataset/  against labels; [bold]tune-crf[/] finds the CRF that suits it
    [bold]deeplab run[/] segment photos/ results/ the same as a Prefect flow; [bold]deeplab serve[/] on a schedule

    Exit codes: 0 done, 1 failed (the reason is on stderr), 2 wrong usage, 3 too many images became error rows,
    130 stopped with Ctrl-C; what was committed before stays, and the same command goes on from there.""",
)
app.command("segment")(segment.segment)
app.command("status")(results.status)
app.command("show")(results.show)
app.command("export")(results.export)
app.command("report")(report.report)
app.command("view")(report.view)
app.command("verify")(upkeep.verify)
app.command("repair")(upkeep.repair)
app.command("compact")(upkeep.compact)
app.command("vacuum")(upkeep.vacuum)
app.command("drop-model")(upkeep.drop_model)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("tune-crf")(evaluate.tune_crf)
app.command("benchmark")(benchmark.benchmark)
app.command("models")(train.models)
app.command("import-weights")(architectures.import_weights)
app.command("pack")(dataset.pack)
datasets = typer.Typer(no_args_is_help=True, help="Data sets to train on.")
datasets.command("check")(dataset.check)
app.add_typer(datasets, name="dataset")
app.add_typer(run.app, name="run")
app.command("serve")(serve.serve)
app.command("setup-prefect")(serve.setup_prefect)


INTERRUPTED = 130


def main() -> None:
    """Entry point: every foreseen trouble is one line on stderr and an exit code, never a traceback."""
    # A terminated run ends like an interrupted one: Ray is taken down, committed chunks stay.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that is no UTF-8 is printed as \\xe9
    stderr = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        app()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            stderr.print("[yellow]stopped[/]: what was committed stays, and the same command goes on from there")
        raise
    except UserError as error:
        stderr.print("[red]error[/]:", escape(str(error)))
        sys.exit(1)


if __name__ == "__main__":
    main()
