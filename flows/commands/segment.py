"""`deeplab segment`: from an archive to a table of masks."""

from __future__ import annotations

import dataclasses
import shlex
import time
from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from deeplab.errors import counted
from flows.commands.parameters import Json, with_options
from flows.console.terminal import bar, print_json, shares, stderr, stdout
from pipelines.options import SegmentOptions

if TYPE_CHECKING:
    from pipelines.segment.run import SegmentProgress, Summary

DONE, FAILED, TOO_MANY_ERRORS = 0, 1, 3


@with_options
def segment(options: SegmentOptions, as_json: Json = False) -> None:
    """Segment every image of ARCHIVE that has no row in RESULTS yet.

    Exactly one row per image, version and model. Run it again after a crash or Ctrl-C, or with new images: only what is
    missing is done. Images that cannot be read become rows with the reason.

    [dim]deeplab segment photos/ results/
    deeplab segment 'photos/**/*.jpg' results/ --model my-model --no-crf
    deeplab segment s3://bucket/photos s3://bucket/results --address ray-head:6379[/]
    """
    require_archive(options)
    from pipelines.segment.run import TooManyErrors, note
    from pipelines.segment.run import segment as run

    phases = {
        "inventory": "listing images",
        "plan": "planning",
        "start": "starting Ray",
        "segment": "segmenting",
        "commit": "segmenting",
    }
    if notice := note(options):
        stderr.print(notice, soft_wrap=True, markup=False, style="dim")
    code, failure = DONE, ""
    with bar("images") as display:
        committed_at: float | None = None

        def watch(progress: SegmentProgress) -> None:
            nonlocal committed_at
            committed_at = time.monotonic() if progress.phase == "commit" else committed_at
            details = {}
            if phases[progress.phase] == "segmenting":
                details = _details(progress, options.max_error_rate, committed_at)
            display.update(phases[progress.phase], progress.done, progress.total or None, details=details)

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


def require_archive(options: SegmentOptions) -> None:
    """ArchiveError for a local archive that does not exist, before torch, Ray or a server; a job's archive is its cluster's."""
    from pipelines.archive import inventory

    if not (options.address or "").startswith("http"):
        inventory.require(options.archive)


def _details(progress: SegmentProgress, max_error_rate: float, committed_at: float | None) -> dict[str, Text]:
    """The lines below the bar. `committed_at`: of time.monotonic, None before the first commit."""
    share = progress.errors / max(progress.committed, 1)
    colour = "" if not progress.errors else "yellow" if share <= max_error_rate else "red"
    limit = f" ({share:.1%} of what is committed; the run stops above {max_error_rate:.1%} of all)" if progress.errors else ""
    details = {"errors": Text(f"{progress.errors:,}{limit}", style=colour)}
    if committed_at is None:
        return {**details, "committed": Text("nothing yet")}
    ago = f"{time.monotonic() - committed_at:.0f} s ago"
    details["committed"] = Text(f"{progress.committed:,} images {ago}, table version {progress.version}")
    if progress.seconds:
        details["stages"] = shares(progress.seconds)
    return details


def print_summary(summary: Summary) -> None:
    """Print the summary of a run for people."""
    from pipelines.storage.filesystems import delta_location

    place = delta_location(summary.results)
    if summary.passed_over:
        files = counted(summary.passed_over, "file")
        stdout.print(f"passed over {files} without an image's extension (--include '*' takes every file)")
    if summary.outputs:
        outputs = counted(summary.outputs, "folder or file", "folders or files")
        stdout.print(f"passed over {outputs} that deeplab wrote (to segment one, name it as ARCHIVE)")
    if number := summary.made_otherwise:
        others = " or ".join(summary.other_settings[:2]) + ", ..." * (len(summary.other_settings) > 2)
        stdout.print(
            f"{counted(number, 'image has a mask', 'images have masks')} made with {escape(others)}; --redo makes "
            f"{'it' if number == 1 else 'them'} again",
            soft_wrap=True,
        )
    if not summary.images and summary.elsewhere:
        rows = counted(summary.elsewhere, "image that was left", "images that were left")
        stdout.print(f"another run brought the rows of {rows} meanwhile (model {summary.model})")
        return
    if not summary.images:
        have = counted(summary.already, "image of the archive has", "images of the archive have")
        stdout.print(f"nothing to do: {have} a row in {place}, none is left (model {summary.model})")
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    meanwhile = f", {summary.elsewhere} got it from another run meanwhile" if summary.elsewhere else ""
    replaced = f", {summary.replaced} of them in place of an earlier row" if summary.replaced else ""
    already = f"{summary.already} had a row before{meanwhile}"
    table.add_row("images", f"{summary.images} done, {summary.errors} of them errors{replaced}; {already}")
    for reason, count in summary.errors_by_reason.items():
        table.add_row("", f"{count} x {escape(reason)}")
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in summary.seconds_by_stage.items())
    table.add_row("rate", f"{summary.images_per_second:.2f} images/s over {summary.seconds:.1f} s, with the start of workers")
    table.add_row("seconds by stage", f"{stages} (summed over processes)")
    if summary.bound:
        table.add_row("bound by", escape(summary.bound))
    table.add_row(
        "class shares", ", ".join(f"{name} {share:.1%}" for name, share in summary.class_shares.items() if share > 0) or "-"
    )
    table.add_row("model", summary.model)
    table.add_row("table", f"{place} (version {summary.version})")
    stdout.print(table)
    if summary.other_versions:
        versions = ", ".join(summary.other_versions)
        stdout.print(
            f"the table also has rows of {escape(versions)}, another version of this model; `deeplab drop-model` removes them",
            soft_wrap=True,
        )
    stdout.print("look at them:", style="dim")
    place = shlex.quote(place)
    stdout.print(f"  deeplab show {place} -o sheet.png\n  deeplab report {place} -o report/", soft_wrap=True, markup=False)
