"""`deeplab benchmark`: what a model costs on this machine, and what an archive will take."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from deeplab.errors import UserError
from flows.commands.parameters import Json
from flows.terminal import bar, print_json, stdout


def benchmark(
    model: Annotated[
        str, typer.Argument(help="Bundled model, model folder, REGISTRY@ALIAS, or an architecture (random weights).")
    ] = "pets",
    photos: Annotated[
        Path | None, typer.Option(help="Folder of photos like those of the archive.", show_default="made-up ones")
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=1000, help="Photos to measure with.")] = 8,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of made-up photos, in pixels.")] = "375x500",
    scales: Annotated[str, typer.Option(help="Scales of the input, comma-separated; 0.5,0.75,1 is DeepLab v2's MSC.")] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="Also score the mirror image and average.")] = False,
    crf: Annotated[bool, typer.Option(help="Refine masks with the dense CRF.")] = True,
    crf_params: Annotated[str, typer.Option(help="Named CRF parameters.")] = "kazuto",
    crf_mode: Annotated[str, typer.Option(help="fast or exact.")] = "fast",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Times that each photo goes through; the median counts.")] = 3,
    images: Annotated[int, typer.Option(min=1, help="Images of the archive that the estimate is for.")] = 1_000_000,
    cores: Annotated[int | None, typer.Option(min=1, help="Cores of the estimate.", show_default="this machine's")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of the estimate.", show_default="this machine's, on cuda")] = None,
    hourly_price: Annotated[
        float | None, typer.Option(min=0, help="What these cores and GPUs cost an hour, for a cost line.")
    ] = None,
    as_json: Json = False,
) -> None:
    """How fast MODEL is here, stage by stage, what bounds it, and what an archive of --images will take.

    One core (or GPU) is measured and the estimate multiplies; reading the images and starting workers are not in it.

    [dim]deeplab benchmark pets --photos photos/
    deeplab benchmark resnet101-aspp --scales 0.5,0.75,1 --device cuda --cores 16 --hourly-price 3.20[/]
    """
    import torch

    from deeplab import speed
    from deeplab.arithmetic import device_named
    from deeplab.crf import DenseCRF
    from deeplab.images import ImageError
    from deeplab.predictor import Scoring

    network, classes, label = _network(model)
    factors = _numbers(scales, float, ",", "--scales")
    on_gpu = device_named(device).type == "cuda"
    encoded = _read(photos, count) if photos else speed.pictures(count, *_side(size))
    try:
        engine = DenseCRF.named(crf_params, mode=crf_mode) if crf else None  # type: ignore[arg-type]
        twin = DenseCRF.named(crf_params, mode="exact", backend="torch", device="cuda") if crf and on_gpu else None
        with bar("rounds") as display:
            found = speed.measure(
                network,
                classes,
                encoded,
                scoring=Scoring(scales=factors, flip=flip, precision=precision),  # type: ignore[arg-type]
                device=device,
                crf=engine,
                crf_on_device=twin,
                rounds=rounds,
                watch=lambda done, total: display.update("measuring", done, total),
            )
    except ImageError as error:
        raise UserError(f"{photos}: a photo cannot be used: {error}") from error
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    cards = gpus if gpus is not None else torch.cuda.device_count() if on_gpu else 0
    total = speed.estimate(found, images, cores or os.cpu_count() or 1, cards if on_gpu else 0, hourly_price)
    if as_json:
        told = {**dataclasses.asdict(found), "utilisation": found.utilisation, "estimate": dataclasses.asdict(total)}
        print_json({"model": label, **told})
        return
    _print(label, found, total)


def _network(model: str) -> tuple[Any, Any, str]:
    """Network, class table and label of a model, or of an architecture with random weights."""
    from deeplab import checkpoint, zoo
    from deeplab.classes import ClassTable
    from pipelines import registry

    if model in zoo.ARCHITECTURES:
        names = [f"class {index}" for index in range(21)]
        return zoo.build(model, 21, seed=0).eval(), ClassTable.from_names(names), f"{model}, 21 classes, random weights"
    loaded = checkpoint.parse(*registry.read_model(model))
    return loaded.network, loaded.classes, loaded.label


def _read(folder: Path, count: int) -> list[bytes]:
    from deeplab.images import EXTENSIONS

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not paths:
        raise UserError(f"{folder}: no photos in it ({', '.join(EXTENSIONS[:6])}, ... are accepted)")
    step = max(1, len(paths) // count)  # from all over the folder
    return [path.read_bytes() for path in paths[::step][:count]]


def _side(size: str) -> tuple[int, int]:
    height, *width = _numbers(size, int, "x", "--size")
    if len(width) != 1 or not all(1 <= side <= 10_000 for side in (height, *width)):
        raise typer.BadParameter(f"{size!r}: HEIGHTxWIDTH such as 375x500, up to 10000, is accepted", param_hint="--size")
    return height, width[0]


def _numbers(text: str, kind: type, separator: str, name: str) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(separator))
    except ValueError:
        raise typer.BadParameter(f"{text!r}: numbers separated by {separator!r} are accepted", param_hint=name) from None


def _print(label: str, found: Any, total: Any) -> None:
    stdout.print(f"{escape(label)}: {found.images} photos of {found.pixels / 1e6:.2f} million pixels, {found.precision}")
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
