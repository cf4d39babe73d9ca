"""`deeplab benchmark` and `deeplab doctor`: the speed of a model on this machine, and what the machine, store and servers offer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from deeplab.errors import counted
from flows.commands.parameters import Json, with_options
from flows.commands.serve import ServerError, require_server
from flows.console.error_messages import without_secrets
from flows.console.terminal import bar, plain_table, print_json, stdout
from pipelines.options import BenchmarkOptions

if TYPE_CHECKING:
    from pipelines.benchmark import Benchmark
    from pipelines.doctor.finding import Check, Finding

COLOURS = {"ok": "green", "note": "yellow", "failed": "red"}


@with_options
def benchmark(options: BenchmarkOptions, as_json: Json = False) -> None:
    """Measure MODEL on this machine, stage by stage; say what bounds it, and estimate an archive of --images.

    One core (or GPU) is measured; the estimate multiplies that. It leaves out reading images and starting workers.

    [dim]deeplab benchmark pets --photos photos/
    deeplab benchmark resnet101-aspp --scales 0.5,0.75,1 --device cuda --cores 16 --hourly-price 3.20[/]
    """
    from pipelines.benchmark import benchmark as run

    with bar("rounds") as display:
        result = run(options, lambda done, total: display.update("measuring", done, total))
    if as_json:
        print_json(result.json())
    else:
        _print(result)


def _print(result: Benchmark) -> None:
    speed, estimate = result.speed, result.estimate
    photos = f"{counted(speed.images, 'photo')} of {speed.pixels / 1e6:.2f} million pixels"
    stdout.print(f"{escape(result.model)}: {photos}, {speed.precision}")
    table = plain_table("stage", "where", "ms an image", "images/s", left=("where",))
    stages = [(stage, speed.device if stage == "score" else "one core", value) for stage, value in speed.seconds.items()]
    if speed.refine_device is not None:
        stages.append(("refine, exact", speed.device, speed.refine_device))
    for stage, where, value in stages:
        table.add_row(stage, escape(where), f"{1000 * value:.2f}", f"{1 / value:.2f}" if value else "-")
    stdout.print(table)
    rate = speed.flops / speed.seconds["score"] / 1e9
    product = f"{speed.utilisation:.0%} of the {speed.peak / 1e9:.0f} that a matrix product of that precision reaches there"
    stdout.print(f"the network takes {speed.flops / 1e9:.1f} GFLOP an image: {rate:.0f} GFLOP/s, {product}", soft_wrap=True)
    machine = counted(estimate.cores, "core") + (f" and {counted(estimate.gpus, 'GPU')}" if estimate.gpus else "")
    stdout.print(f"on {machine}: {estimate.images_per_second:.1f} images/s, bound by {estimate.bound}")
    cost = f", {estimate.cost:.2f} at that hourly price" if estimate.cost is not None else ""
    stdout.print(
        f"{counted(estimate.images, 'image')}: {estimate.hours:.1f} hours{cost} (without reading images and starting workers)",
        soft_wrap=True,
    )


def doctor(
    archive: Annotated[str | None, typer.Argument(metavar="ARCHIVE", help="An archive to list.", show_default=False)] = None,
    results: Annotated[
        str | None, typer.Argument(metavar="RESULTS", help="The place of a results table, to try to write.", show_default=False)
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster to join (host:port) or its Jobs API (http://host:8265).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check this machine and what a run needs.

    Each finding says what there is, what follows from it, and what to do.
    Python, packages, torch, the processor's instructions, the CRF engine, GPU, memory, /dev/shm, disk and Ray; the archive, the
    results and the cluster that you name; the Prefect server that PREFECT_API_URL names. A probe is written to RESULTS and removed.
    Exit code 1 if something cannot work.

    [dim]deeplab doctor
    deeplab doctor s3://bucket/photos s3://bucket/results --address ray-head:6379[/]
    """
    from pipelines.doctor import machine, services
    from pipelines.doctor.finding import findings

    checks: dict[str, Check] = {**machine.CHECKS, "Ray cluster" if address else "Ray": partial(services.ray, address)}
    if archive is not None:
        checks["archive"] = partial(services.archive, archive)
    if results is not None:
        checks["results"] = partial(services.results, results)
    checks["Prefect server"] = _server
    seen = []
    for finding in map(_without_secrets, findings({name: partial(_quiet, check) for name, check in checks.items()})):
        seen.append(finding)
        if not as_json:
            _print_finding(finding)
    failed = sum(finding.state == "failed" for finding in seen)
    if as_json:
        print_json([asdict(finding) for finding in seen])
    else:
        notes = sum(finding.state == "note" for finding in seen)
        stdout.print(f"{len(seen)} findings: {failed} failed, {notes} to know")
    raise typer.Exit(1 if failed else 0)


def _quiet(check: Check) -> Iterator[Finding]:
    """The findings of one check; what Ray prints on stdout, which is for them, goes to stderr."""
    with redirect_stdout(sys.stderr):
        seen = list(check())
    yield from seen


def _server() -> Iterator[Finding]:
    """The Prefect server of PREFECT_API_URL or of the Prefect profile."""
    from prefect.settings import PREFECT_API_URL

    from pipelines.doctor.finding import Finding

    name, url = "Prefect server", PREFECT_API_URL.value()
    if not url:
        yield Finding(name, "ok", "none is named", "deeplab run starts one for as long as it runs; deeplab serve needs one")
        return
    try:
        require_server()
    except ServerError as error:
        remedy = "start it (prefect server start), or unset PREFECT_API_URL"
        yield Finding(name, "failed", str(error), "flows do not start", remedy)
        return
    yield Finding(name, "ok", f"{url} answers")


def _without_secrets(finding: Finding) -> Finding:
    value, meaning, remedy = map(without_secrets, (finding.value, finding.meaning, finding.remedy))
    return replace(finding, value=value, meaning=meaning, remedy=remedy)


def _print_finding(finding: Finding) -> None:
    colour = COLOURS[finding.state]
    stdout.print(f"[{colour}]{finding.state:6}[/] [bold]{finding.name}[/]: {escape(finding.value)}", soft_wrap=True)
    for text, style in ((finding.meaning, "dim"), (finding.remedy, "")):
        if text:
            arrow = "-> " if text is finding.remedy else ""
            stdout.print(f"       {arrow}{escape(text)}", style=style, soft_wrap=True)
