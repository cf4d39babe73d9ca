"""`deeplab segment`: an archive becomes a table of masks."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from deeplab.crf.parameters import PARAMETER_SETS
from flows.commands.arguments import numbers, options_of
from flows.terminal import bar, print_json, stderr, stdout

CRF_PARAMS = f"CRF parameters: {', '.join(PARAMETER_SETS)}, or card: what tune-crf wrote into the model's."
DONE, FAILED, TOO_MANY_ERRORS = 0, 1, 3


def segment(
    archive: Annotated[
        str, typer.Argument(help="Folder, glob, list file (.txt), inventory (.parquet) or s3:// prefix.", show_default=False)
    ],
    results: Annotated[
        str, typer.Argument(help="Folder or s3:// prefix of the results table; created when missing.", show_default=False)
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Bundled model (see `deeplab models`), model folder or REGISTRY@ALIAS.")
    ] = "pets",
    scales: Annotated[str, typer.Option(help="Scales of the input, comma-separated; 0.5,0.75,1 is DeepLab v2's MSC.")] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="Also score the mirror image and average.")] = False,
    fusion: Annotated[str, typer.Option(help="Fusion of scales: max (DeepLab v2) or mean.")] = "max",
    crf: Annotated[bool, typer.Option(help="Refine masks with the dense CRF.")] = True,
    crf_params: Annotated[str, typer.Option(help=CRF_PARAMS)] = "kazuto",
    crf_mode: Annotated[str, typer.Option(help="fast (prunes absent classes) or exact.")] = "fast",
    crf_backend: Annotated[str, typer.Option(help="native (on the cores), torch (on the GPUs, exact) or pydensecrf.")] = "native",
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    tile: Annotated[int, typer.Option(help="Images above TILE x TILE pixels are scored in overlapping tiles.")] = 1025,
    overlap: Annotated[int, typer.Option(help="Pixels that tiles share.")] = 128,
    max_pixels: Annotated[
        int, typer.Option(help="Images with more pixels become error rows; raise it for large images.")
    ] = 60_000_000,
    commit_every: Annotated[float, typer.Option(help="Seconds between commits: what a dead driver can lose.")] = 60,
    limit: Annotated[int | None, typer.Option(help="Take only the first LIMIT images.")] = None,
    include: Annotated[list[str] | None, typer.Option(help="Pattern of names to take; '*' takes every file. Repeatable.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Pattern of names to leave out. Repeatable.")] = None,
    max_error_rate: Annotated[float, typer.Option(help="Exit 3, after committing, above this share of error rows.")] = 0.05,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="Take images whose row is an error up again.")] = False,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join (host:port or auto; deeplab run also: http://host:8265); none starts Ray here."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
) -> None:
    """Segment every image of ARCHIVE that RESULTS has no mask of yet.

    Exactly one row per image, version and model: run it again after a crash, a Ctrl-C or new images, and only what is
    missing is done. Images that cannot be read become rows with the reason.

    [dim]deeplab segment photos/ results/
    deeplab segment 'photos/**/*.jpg' results/ --model my-model --no-crf
    deeplab segment s3://bucket/photos s3://bucket/results --address ray-head:6379[/]
    """
    from pipelines.segment import Progress, TooManyErrors
    from pipelines.segment import segment as run

    options = segment_options(locals())
    phases = {
        "inventory": "listing images",
        "plan": "planning",
        "start": "starting Ray",
        "segment": "segmenting",
        "commit": "segmenting",
    }
    code, failure = DONE, ""
    with bar("images") as display:

        def watch(progress: Progress) -> None:
            errors = f"[red]{progress.errors} errors[/]" if progress.errors else ""
            committed = f"{progress.committed} committed" if progress.committed else ""
            display.update(phases[progress.phase], progress.done, progress.total or None, f"{committed} {errors}".strip())

        try:
            summary = run(options, watch)
        except TooManyErrors as error:
            summary, code, failure = error.summary, TOO_MANY_ERRORS, str(error)
    if as_json:
        print_json(dataclasses.asdict(summary))
    else:
        print_summary(summary)
    if failure:
        stderr.print("[red]error[/]:", escape(failure))
    raise typer.Exit(code)


def segment_options(given: dict[str, Any]) -> Any:
    """SegmentOptions from the command's arguments."""
    from pipelines.options import SegmentOptions

    patterns = {name: tuple(given[name] or ()) for name in ("include", "exclude")}
    return options_of(SegmentOptions, segment, {**given, **patterns, "scales": numbers(given["scales"])})


def print_summary(summary: Any) -> None:
    """The summary for people."""
    from pipelines.storage import delta_location

    place = delta_location(summary.results)
    if summary.passed_over:
        stdout.print(f"{summary.passed_over} files without an image's name were passed over (--include '*' takes them)")
    if summary.outputs:
        stdout.print(f"{summary.outputs} folders or files that deeplab wrote were passed over (name one to segment it)")
    if not summary.images and summary.elsewhere:
        stdout.print(f"another run brought the rows of all {summary.elsewhere} images meanwhile (model {summary.model})")
        return
    if not summary.images:
        stdout.print(
            f"nothing to do: all {summary.already} images of the archive have their row in {place} (model {summary.model})"
        )
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    meanwhile = f", {summary.elsewhere} got it from another run meanwhile" if summary.elsewhere else ""
    already = f"{summary.already} had their row before{meanwhile}"
    table.add_row("images", f"{summary.images} done, {summary.errors} of them errors; {already}")
    for reason, count in summary.errors_by_reason.items():
        table.add_row("", f"{count} x {escape(reason)}")
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in summary.seconds_by_stage.items())
    table.add_row("rate", f"{summary.images_per_second:.2f} images/s over {summary.seconds:.1f} s, workers starting included")
    table.add_row("seconds by stage", f"{stages} (summed over processes)")
    if summary.bound:
        table.add_row("bound by", escape(summary.bound))
    table.add_row(
        "class shares", ", ".join(f"{name} {share:.1%}" for name, share in summary.class_shares.items() if share > 0) or "-"
    )
    table.add_row("model", summary.model)
    table.add_row("table", f"{place} (version {summary.version})")
    stdout.print(table)
    stdout.print("open it:", style="dim")
    answer = f'ResultsTable.open({place!r}).query("SELECT * EXCLUDE mask FROM results LIMIT 5").df()'
    program = f"from pipelines.results import ResultsTable; print({answer})"
    stdout.print(f"  python -c {shlex.quote(program)}", soft_wrap=True, markup=False)
