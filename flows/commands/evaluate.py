"""`deeplab evaluate`, `tune-crf` and `quantize`: score a model or masks, fit the CRF to a model, find its int8 ranges."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from deeplab.errors import counted
from flows.commands.parameters import Json, with_options
from flows.console.terminal import bar, plain_table, print_json, stdout
from pipelines.options import EvaluateOptions, QuantizeOptions, TuneOptions

# Default widths of the trimap curve; the papers draw 1 to 40 pixels.
CURVE = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40)
Plots = Annotated[Path | None, typer.Option(help="Folder for trimap.png, confusion.png and evaluation.json.")]


@with_options
def evaluate(options: EvaluateOptions, plots: Plots = None, as_json: Json = False) -> None:
    """Score MODEL, or the masks of a results table, against the labels of DATASET: one confusion matrix, IoU per class.

    With --crf, the figures before the CRF are printed, too.
    """
    from pipelines.train.evaluation import evaluate as run

    with bar("images") as display:
        summary = run(with_curve(options, plots), lambda done, total: display.update("evaluating", done, total))
    if plots is not None:
        draw(summary, plots)
    if as_json:
        print_json(summary)
    else:
        _print(summary)


def with_curve(options: EvaluateOptions, plots: Path | None) -> EvaluateOptions:
    """The options; with the curve's widths if plots are wanted and --trimap is not set."""
    return options.model_copy(update={"trimap": CURVE}) if plots and not options.trimap else options


def draw(summary: dict[str, Any], folder: Path) -> None:
    """Write the figures as files: pictures, and all numbers as JSON. UserError if `folder` cannot be written."""
    from deeplab.errors import UserError
    from deeplab.evaluation.plots import confusion_matrix, trimap_curve
    from deeplab.files import LocalFiles, mark_files, mark_output
    from deeplab.json_text import json_text

    try:
        pictures = [folder / name for name in ("confusion.png", "trimap.png")]
        if not mark_output(LocalFiles(folder)):
            mark_files(pictures)
        (folder / "evaluation.json").write_text(json_text(summary, indent=2) + "\n")
        title = f"{summary['model']} on {summary['split']}"
        confusion_matrix(summary["confusion"], list(summary["iou"]), title).save(pictures[0])
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
    table = plain_table("class", "IoU", *(["before the CRF"] if before else []))
    for key, value in summary["iou"].items():
        table.add_row(escape(key), *map(_figure, (value, before["iou"][key]) if before else (value,)))
    source = f"the masks of {summary['results']}" if "results" in summary else summary["scored"]
    about = f"{summary['model']} on {counted(summary['images'], 'image')} of {summary['dataset']}/{summary['split']}"
    stdout.print(escape(f"{about}, {source}, CRF {summary['crf'] or 'off'}"))
    if summary.get("without_mask"):
        stdout.print(f"[yellow]{counted(summary['without_mask'], 'image')} with an error row[/]: all pixels there count as missed")
    stdout.print(table)
    for key in ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"):
        earlier = f" (before the CRF {_figure(before[key])})" if before and key in before else ""
        stdout.print(f"{key.replace('_', ' ')} {_figure(summary[key])}{earlier}")
    for width, value in summary["trimap"].items():
        earlier = f" (before the CRF {_figure(before['trimap'][width])})" if before else ""
        stdout.print(f"mIoU within {width} pixels of a boundary {_figure(value)}{earlier}")


def _figure(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


@with_options
def tune_crf(options: TuneOptions, as_json: Json = False) -> None:
    """Search the CRF parameters that suit MODEL best, from coarse to fine as in the papers, and write them into its card.

    `segment` and `evaluate` use them with --crf-params card. The card is part of the model's digest, so the model's label changes.
    """
    from pipelines.train.crf_search import tune

    with bar("steps") as display:
        winner = tune(options, display.update)
    if as_json:
        print_json(winner)
        return
    searched = winner["searched_on"]
    stdout.print(
        f"{winner['crf']}: mIoU {winner['mean_iou']:.4f}, without a CRF {winner['mean_iou_before']:.4f}, "
        f"on {counted(searched['images'], 'image')} of {searched['split']}, the best of {searched['candidates']}"
    )
    if winner["written"]:
        stdout.print(f"written into the card of {escape(winner['model'])}; --crf-params card uses it")


@with_options
def quantize(options: QuantizeOptions, as_json: Json = False) -> None:
    """Find what MODEL needs for --precision int8 from PHOTOS, compare with float32 on others of them, and write it into the model.

    The photos need no labels. Weights, ranges and card are part of the model's digest, so the model's label changes.
    """
    from pipelines.train.quantization import quantize as run

    with bar("photos") as display:
        result = run(options, display.update)
    if as_json:
        print_json(result)
        return
    stdout.print(
        f"labels equal to float32's: {result['labels_equal']:.2%} on {counted(result['held_back'], 'photo')} held back, "
        f"{result['labels_equal_worst']:.2%} on the worst"
    )
    if figures := result.get("mean_iou"):
        images = f"{counted(figures['images'], 'image')} of {figures['split']}"
        stdout.print(f"mIoU {figures['int8']:.4f} on {images}, float32 {figures['float32']:.4f}")
    stdout.print(f"{escape(result['model'])} (was {escape(result['was'])}) is in {escape(result['written'])}", soft_wrap=True)
