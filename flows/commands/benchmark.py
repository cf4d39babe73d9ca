"""`deeplab benchmark`: what a model costs on this machine, and what an archive will take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from flows.commands.parameters import Json, with_options
from flows.console.terminal import bar, print_json, stdout
from pipelines.options import BenchmarkOptions

if TYPE_CHECKING:
    from pipelines.benchmark import Benchmark


@with_options
def benchmark(options: BenchmarkOptions, as_json: Json = False) -> None:
    """How fast MODEL is here, stage by stage, what bounds it, and what an archive of --images will take.

    One core (or GPU) is measured and the estimate multiplies; reading the images and starting workers are not in it.

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
    found, total = result.speed, result.estimate
    stdout.print(f"{escape(result.model)}: {found.images} photos of {found.pixels / 1e6:.2f} million pixels, {found.precision}")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("stage", "where", "ms an image", "images/s"):
        table.add_column(column, justify="right" if column.endswith(("image", "/s")) else "left")
    stages = [(stage, found.device if stage == "score" else "one core", value) for stage, value in found.seconds.items()]
    if found.refine_device is not None:
        stages.append(("refine, exact", found.device, found.refine_device))
    for stage, where, value in stages:
        table.add_row(stage, escape(where), f"{1000 * value:.2f}", f"{1 / value:.2f}" if value else "-")
    stdout.print(table)
    rate = found.flops / found.seconds["score"] / 1e9
    product = f"{found.utilisation:.0%} of the {found.peak / 1e9:.0f} that a matrix product of that precision reaches there"
    stdout.print(f"the network takes {found.flops / 1e9:.1f} GFLOP an image: {rate:.0f} GFLOP/s, {product}", soft_wrap=True)
    machine = f"{total.cores} core{'s' if total.cores != 1 else ''}" + (f" and {total.gpus} GPUs" if total.gpus else "")
    stdout.print(f"on {machine}: {total.images_per_second:.1f} images/s, bound by {total.bound}")
    cost = f", {total.cost:.2f} at the hourly price given" if total.cost is not None else ""
    stdout.print(
        f"{total.images:,} images: {total.hours:.1f} hours{cost} (without reading them and starting workers)", soft_wrap=True
    )
