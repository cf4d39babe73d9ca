"""`deeplab benchmark`: the speed of a model on this machine, and an estimate for an archive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from flows.commands.parameters import Json, with_options
from flows.console.terminal import bar, plain_table, print_json, stdout
from pipelines.options import BenchmarkOptions

if TYPE_CHECKING:
    from pipelines.benchmark import Benchmark


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
    stdout.print(f"{escape(result.model)}: {speed.images} photos of {speed.pixels / 1e6:.2f} million pixels, {speed.precision}")
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
    machine = f"{estimate.cores} core{'s' if estimate.cores != 1 else ''}" + (f" and {estimate.gpus} GPUs" if estimate.gpus else "")
    stdout.print(f"on {machine}: {estimate.images_per_second:.1f} images/s, bound by {estimate.bound}")
    cost = f", {estimate.cost:.2f} at that hourly price" if estimate.cost is not None else ""
    stdout.print(
        f"{estimate.images:,} images: {estimate.hours:.1f} hours{cost} (without reading images and starting workers)",
        soft_wrap=True,
    )
