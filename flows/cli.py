"""The `deeplab` command."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Annotated

import typer

from flows.commands import architectures, benchmark, dataset, evaluate, report, results, run, segment, serve, train, upkeep
from flows.console import environment, error_messages, signals
from flows.console.terminal import stderr

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
    130 stopped with Ctrl-C; what was committed before stays, and the same command goes on from there.
    An error is one line; --debug prints its traceback.""",
)


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error; also DEEPLAB_DEBUG=1.")] = False,
) -> None:
    if debug:
        os.environ[error_messages.DEBUG] = "1"  # for the processes that the command starts, too
    if notice := environment.prepare():
        stderr.print(notice, soft_wrap=True, markup=False, style="dim")


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


def main() -> None:
    """Entry point: every trouble is one line on stderr and an exit code, and a traceback only with --debug."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that is no UTF-8 is printed as \\xe9
    # A run that is ended, or whose terminal is closed, ends like an interrupted one: what is finished is committed, and Ray is
    # taken down. A signal that is ignored stays ignored, as `nohup` wants it.
    for number, code in signals.EXIT_CODES.items():
        if number != signal.SIGINT and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_, code=code: sys.exit(code))
    error_messages.silence()
    try:
        app(_debug_first(sys.argv[1:]))
    except SystemExit as ended:
        if ended.code == signals.INTERRUPTED:
            stderr.print("[yellow]stopped[/]: what was committed stays, and the same command goes on from there", soft_wrap=True)
        raise
    except Exception as error:
        error_messages.report(error)
        sys.exit(1)


def _debug_first(arguments: list[str]) -> list[str]:
    """--debug belongs to every command, so it may stand anywhere."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    others = [word for word in arguments[:end] if word != "--debug"]
    return ["--debug"] * (len(others) < end) + others + arguments[end:]


if __name__ == "__main__":
    main()
