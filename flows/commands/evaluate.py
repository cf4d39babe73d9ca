"""`deeplab evaluate` and `deeplab tune-crf`: how good a model or a table of masks is, and the CRF that suits a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from flows.commands.arguments import numbers, options_of
from flows.commands.segment import CRF_PARAMS
from flows.commands.train import Layout
from flows.terminal import bar, print_json, stdout

# The widths of the curve where none are given; the papers draw 1 to 40 pixels.
CURVE = "1,2,3,5,7,10,15,20,30,40"
Dataset = Annotated[str, typer.Argument(help="Folder, s3:// prefix or pack of labelled images.", show_default=False)]
Workers = Annotated[int, typer.Option(help="Processes, through Ray; 1 without --address is this process.")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to run on: host:port or auto.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Scales = Annotated[str, typer.Option(help="Scales of the input, comma-separated.")]
Flip = Annotated[bool, typer.Option("--flip", help="Also score the mirror image and average.")]
Fusion = Annotated[str, typer.Option(help="Fusion of scales: max or mean.")]
Mode = Annotated[str, typer.Option(help="fast or exact.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Patience = Annotated[float, typer.Option(help="Seconds to wait for a cluster that has no CPU to give.")]


def evaluate(
    model: Annotated[
        str, typer.Argument(help="Bundled model, model folder, REGISTRY@ALIAS, or a results table.", show_default=False)
    ],
    dataset: Dataset,
    split: Annotated[str, typer.Option(help="Split to score.")] = "val",
    layout: Layout = "auto",
    rows_of: Annotated[str | None, typer.Option(help="Of a results table: the model whose rows count.")] = None,
    scales: Scales = "1",
    flip: Flip = False,
    fusion: Fusion = "max",
    crf: Annotated[bool, typer.Option("--crf/--no-crf", help="Refine with the dense CRF before counting.")] = False,
    crf_params: Annotated[str, typer.Option(help=CRF_PARAMS)] = "kazuto",
    crf_mode: Mode = "fast",
    trimap: Annotated[str, typer.Option(help="Also count within these distances (pixels) of void boundaries, e.g. 2,5,10.")] = "",
    plots: Annotated[Path | None, typer.Option(help="Folder for trimap.png, confusion.png and evaluation.json.")] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    workers: Workers = 1,
    address: Address = None,
    start_timeout: Patience = 600,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave broken pairs out instead of refusing.")] = False,
    as_json: Json = False,
) -> None:
    """MODEL, or the masks of a results table, against the labels of DATASET: one confusion matrix, IoU per class.

    With --crf the figures before it are counted, too.
    """
    from pipelines.evaluate import evaluate as run

    options = evaluate_options(locals())
    with bar("images") as display:
        summary = run(options, lambda done, total: display.update("evaluating", done, total))
    if plots is not None:
        draw(summary, plots)
    if as_json:
        print_json(summary)
    else:
        _print(summary)


def evaluate_options(given: dict[str, Any]) -> Any:
    """EvaluateOptions from the command's arguments; plots want a curve where no distances are given."""
    from pipelines.options import EvaluateOptions

    trimap = numbers(given["trimap"] or (CURVE if given["plots"] else ""))
    return options_of(EvaluateOptions, evaluate, {**given, "scales": numbers(given["scales"]), "trimap": trimap})


def draw(summary: dict[str, Any], folder: Path) -> None:
    """The figures as files: pictures, and all numbers as JSON."""
    import numpy as np

    from deeplab.errors import UserError
    from deeplab.files import LocalFiles, mark_files, mark_output
    from deeplab.json_text import json_text
    from deeplab.plots import confusion_matrix, trimap_curve

    try:
        pictures = [folder / name for name in ("confusion.png", "trimap.png")]
        if not mark_output(LocalFiles(folder)):
            mark_files(pictures)
        (folder / "evaluation.json").write_text(json_text(summary, indent=2) + "\n")
        title = f"{summary['model']} on {summary['split']}"
        confusion_matrix(np.array(summary["confusion"]), list(summary["iou"]), title).save(pictures[0])
        before = summary.get("before_crf")
        curves = {"before the CRF": before["trimap"], "after the CRF": summary["trimap"]} if before else {"": summary["trimap"]}
        try:
            picture = trimap_curve({name: {int(w): v for w, v in c.items()} for name, c in curves.items()}, title)
            picture.save(pictures[1])
        except ValueError as error:
            stdout.print(f"no trimap curve: {error}")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error


def _print(summary: dict[str, Any]) -> None:
    before = summary.get("before_crf")
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("class")
    for title in ("IoU", "before the CRF") if before else ("IoU",):
        table.add_column(title, justify="right")
    for key, value in summary["iou"].items():
        table.add_row(escape(key), *(_figure(found) for found in ((value, before["iou"][key]) if before else (value,))))
    made = f"the masks of {summary['results']}" if "results" in summary else f"scales {','.join(map(str, summary['scales']))}"
    about = f"{summary['model']} on {summary['images']} images of {summary['dataset']}/{summary['split']}"
    stdout.print(escape(f"{about}, {made}, CRF {summary['crf'] or 'off'}"))
    if summary.get("without_mask"):
        stdout.print(f"[yellow]{summary['without_mask']} images have an error row[/]: all their pixels count as missed")
    stdout.print(table)
    for key in ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"):
        earlier = f" (before the CRF {_figure(before[key])})" if before and key in before else ""
        stdout.print(f"{key.replace('_', ' ')} {_figure(summary[key])}{earlier}")
    for width, value in summary["trimap"].items():
        earlier = f" (before the CRF {_figure(before['trimap'][width])})" if before else ""
        stdout.print(f"mIoU within {width} pixels of a boundary {_figure(value)}{earlier}")


def _figure(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def tune_crf(
    model: Annotated[str, typer.Argument(help="Model folder or s3:// prefix, whose card takes the winner.", show_default=False)],
    dataset: Dataset,
    split: Annotated[str, typer.Option(help="Split to search on.")] = "val",
    layout: Layout = "auto",
    images: Annotated[int, typer.Option(help="Images to search on, evenly from the split.")] = 100,
    grid: Annotated[str, typer.Option(help="Coarse grid: deeplab-v2 (128 candidates) or deeplab-v1 (288).")] = "deeplab-v2",
    rounds: Annotated[int, typer.Option(help="Finer rounds around the best, each at half the step.")] = 2,
    scales: Scales = "1",
    flip: Flip = False,
    fusion: Fusion = "max",
    crf_mode: Mode = "fast",
    write: Annotated[bool, typer.Option("--write/--no-write", help="Write the winner into the model's card.")] = True,
    device: Device = "auto",
    workers: Workers = 1,
    address: Address = None,
    start_timeout: Patience = 600,
    as_json: Json = False,
) -> None:
    """Search the CRF parameters that suit MODEL best, coarse to fine as in the papers, and write them into its card.

    `segment` and `evaluate` take them with --crf-params card. The card is part of a model's digest: it gets a new label.
    """
    from pipelines.options import TuneOptions
    from pipelines.tune import tune

    options = options_of(TuneOptions, tune_crf, {**locals(), "scales": numbers(scales)})
    with bar("steps") as display:
        found = tune(options, display.update)
    if as_json:
        print_json(found)
        return
    searched = found["searched_on"]
    stdout.print(
        f"{found['crf']}: mIoU {found['mean_iou']:.4f}, without a CRF {found['mean_iou_before']:.4f}, "
        f"on {searched['images']} images of {searched['split']}, the best of {searched['candidates']}"
    )
    if found["written"]:
        stdout.print(f"written into the card of {escape(found['model'])}; --crf-params card takes it")
