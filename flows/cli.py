"""The `deeplab` command."""

from __future__ import annotations

import io
import os
import signal
import sys
from importlib import metadata
from typing import Annotated

import typer

from flows.commands import architectures, dataset, evaluate, machine, report, results, run, segment, serve, train, upkeep
from flows.console import environment, error_messages, signals
from flows.console.terminal import stderr, stdout

FIRST = {
    "deeplab segment {photos} results/": "masks for the photos of a folder",
    "deeplab show results/ -o sheet.png": "some of them as one picture",
    "deeplab doctor": "what this machine has and lacks",
}

app = typer.Typer(
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""DeepLab over whole image archives: one mask per image, in one table.

    [bold]deeplab segment[/] photos/ results/     masks for a folder, exactly one row per image
    [bold]deeplab show[/] results/ -o sheet.png   look at some of them
    [bold]deeplab status[/] results/              what the table holds; [bold]report[/] and [bold]view[/] show it in a browser
    [bold]deeplab export[/] results/ masks/       PNG files, or one of nine other formats
    [bold]deeplab doctor[/]                       what this machine, a store, a cluster and a server lack, and what to do
    [bold]deeplab benchmark[/] my-model           its speed on this machine, and an estimate for an archive
    [bold]deeplab dataset check[/] dataset/       checks every labelled pair
    [bold]deeplab train[/] dataset/ my-model/     a model of your own, for segment --model my-model
    [bold]deeplab evaluate[/] my-model/ dataset/  a model against labels; [bold]tune-crf[/] fits the CRF to it
    [bold]deeplab quantize[/] my-model photos/    ranges for --precision int8, twice as fast on CPUs
    [bold]deeplab run[/] segment photos/ results/ the same as a Prefect flow; [bold]serve[/] runs flows on a schedule

    Exit codes: 0 done, 1 failed (the reason is on stderr), 2 wrong usage, 3 too many images became error rows,
    130 stopped with Ctrl-C (committed rows are kept; run the same command to continue).
    An error is one line; --debug prints its traceback.""",
)


def _greet() -> None:
    """What a person sees who types `deeplab` alone."""
    photos = "examples/photos" if os.path.isdir("examples/photos") else "photos/"
    commands = {command.format(photos=photos): text for command, text in FIRST.items()}
    width = max(map(len, commands))
    stdout.print("DeepLab for whole image archives: one mask per image, in one table.", soft_wrap=True)
    stdout.print("Three things to try:\n", soft_wrap=True)
    for command, text in commands.items():
        stdout.print(f"  [bold]{command:{width}}[/]  {text}", soft_wrap=True)
    stdout.print("\ndeeplab --help lists all commands, deeplab COMMAND --help explains one.", style="dim", soft_wrap=True)
    stdout.print("deeplab --install-completion has your shell complete them with TAB.", style="dim", soft_wrap=True)


def _version(asked: bool) -> None:
    if asked:
        try:
            stdout.print(f"deeplab {metadata.version('deeplab-pipelines')}")
        except metadata.PackageNotFoundError:
            stdout.print("deeplab, not installed: pip install . in its folder")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error; also DEEPLAB_DEBUG=1.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        _greet()
        raise typer.Exit
    if debug:
        os.environ[error_messages.DEBUG] = "1"  # also for the processes that the command starts
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
app.command("quantize")(evaluate.quantize)
app.command("benchmark")(machine.benchmark)
app.command("doctor")(machine.doctor)
app.command("models")(train.models)
app.command("import-weights")(architectures.import_weights)
app.command("ensemble")(architectures.ensemble)
app.command("pack")(dataset.pack)
datasets = typer.Typer(no_args_is_help=True, help="Data sets to train on.")
datasets.command("check")(dataset.check)
app.add_typer(datasets, name="dataset")
app.add_typer(run.app, name="run")
app.command("serve")(serve.serve)
app.command("setup-prefect")(serve.setup_prefect)


def main() -> None:
    """Entry point: every error is one line on stderr and an exit code; --debug adds the traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that is not UTF-8 is printed as \\xe9
    # SIGTERM and SIGHUP end a run as Ctrl-C does: finished images are committed and Ray is stopped. A signal that is already
    # ignored stays ignored, for `nohup`.
    for number, code in signals.EXIT_CODES.items():
        if number != signal.SIGINT and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_, code=code: sys.exit(code))
    error_messages.silence()
    try:
        app(_debug_first(sys.argv[1:]), prog_name="deeplab")
    except SystemExit as ending:
        if ending.code == signals.INTERRUPTED:
            stderr.print(
                "[yellow]stopped[/]: finished work is kept; run the same command to continue (train: with --resume)", soft_wrap=True
            )
        raise
    except Exception as error:
        error_messages.report(error)
        sys.exit(1)


def _debug_first(arguments: list[str]) -> list[str]:
    """The arguments with --debug in front: it is accepted anywhere on the line."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    without = [word for word in arguments[:end] if word != "--debug"]
    return ["--debug"] * (len(without) < end) + without + arguments[end:]


if __name__ == "__main__":
    main()
