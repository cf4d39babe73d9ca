"""`deeplab dataset check` and `deeplab pack`: check a data set, and pack many small files into a few."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from deeplab.errors import counted
from flows.commands.parameters import Json
from flows.console.terminal import bar, plain_table, print_json, stdout
from pipelines.options.shared import DataSetOptions

if TYPE_CHECKING:
    from deeplab.data.inspection import Inspection

Place = Annotated[
    str, typer.Argument(metavar="DATASET", help="Folder, s3:// prefix or pack of labelled images.", show_default=False)
]
Layout = Annotated[str, typer.Option(help=f"{DataSetOptions.model_fields['layout'].description}.")]
Splits = Annotated[str, typer.Option(help="Splits, comma-separated.")]
BROKEN = 1
SHEET_PAIRS = 12


def check(
    dataset: Place,
    splits: Splits = "train,val",
    layout: Layout = "auto",
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet of pairs (.png or .jpg).")] = None,
    as_json: Json = False,
) -> None:
    """Decode every pair of DATASET; name broken and doubtful ones, print sizes and class shares. Exit code 1 if any is broken."""
    from deeplab.classes import ClassTable
    from deeplab.contact_sheet import contact_sheet
    from deeplab.data.inspection import inspect
    from deeplab.files import mark_files
    from pipelines.train.packed_datasets import open_dataset

    if sheet is not None and sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise typer.BadParameter(f"{sheet}: .png or .jpg is accepted", param_hint="--sheet")
    results, entries = [], []
    with bar("pairs") as display:
        for split in splits.split(","):
            data = open_dataset(dataset, split.strip(), layout)
            note = f"checking {data.split}"
            result = inspect(data, report=lambda done, total, note=note: display.update(note, done, total))  # type: ignore[misc]
            results.append(result)
            sound = [index for index, stem in enumerate(data.stems) if stem not in result.broken]
            for index in sound[:: max(1, -(-len(sound) * len(splits.split(",")) // SHEET_PAIRS))] if sheet else ():
                entries.append((f"{data.split}/{data.stems[index]}", *data[index]))
    if sheet is not None and entries:
        table = ClassTable.from_names(results[0].classes)
        contact_sheet([(name, image, _without_ignored(labels)) for name, image, labels in entries], table, dataset).save(sheet)
        mark_files([sheet])
    if as_json:
        print_json([_summary(result) for result in results])
    else:
        for result in results:
            _print(result)
    raise typer.Exit(BROKEN if any(result.broken for result in results) else 0)


def _without_ignored(labels: Any) -> Any:
    """A copy of labels (H x W uint8) with ignored pixels as background: an overlay has no colour for them."""
    shown = labels.copy()
    shown[shown == 255] = 0
    return shown


def _summary(result: Inspection) -> dict[str, Any]:
    return {
        "split": result.split,
        "pairs": result.pairs,
        "broken": result.broken,
        "doubtful": result.doubtful,
        "sizes": {f"{height}x{width}": count for (height, width), count in sorted(result.sizes.items())},
        "class_shares": result.shares(),
        "class_images": dict(zip(result.classes, result.images[:-1].tolist(), strict=True)),
        "ignored_share": float(result.pixels[-1] / max(1, result.pixels.sum())),
    }


def _print(result: Inspection) -> None:
    summary = _summary(result)
    heights, widths = zip(*(result.sizes or {(0, 0): 0}), strict=True)
    stdout.print(
        f"[bold]{escape(result.split)}[/]: {counted(result.pairs, 'pair')}, {len(result.broken)} broken; "
        f"{counted(len(result.sizes), 'size')}, "
        f"{min(heights)} to {max(heights)} high, {min(widths)} to {max(widths)} wide; {summary['ignored_share']:.1%} ignored"
    )
    table = plain_table("class", "share", "images")
    for name, share in summary["class_shares"].items():
        table.add_row(escape(name), f"{share:.2%}", str(summary["class_images"][name]))
    stdout.print(table)
    for reason in result.doubtful.values():
        stdout.print("[yellow]doubtful[/]:", escape(reason), soft_wrap=True)
    for reason in result.broken.values():
        stdout.print("[red]broken[/]:", escape(reason), soft_wrap=True)


def pack(
    dataset: Place,
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or s3:// prefix to write.", show_default=False)],
    splits: Splits = "train,val",
    layout: Layout = "auto",
    tile: Annotated[
        int, typer.Option(min=0, help="Cut larger images into tiles of at most this many pixels a side; 0 is off.")
    ] = 0,
) -> None:
    """Write DATASET as a few Parquet files, for object storage; `deeplab train` and `evaluate` take them as DATASET."""
    from deeplab.data.datasets import LabelledFolder
    from pipelines.storage import filesystems
    from pipelines.train.packed_datasets import pack as run

    files = filesystems.files(filesystems.canonical(dataset))
    opened = [LabelledFolder(files, split.strip(), layout) for split in splits.split(",")]
    with bar("pairs") as display:
        pairs = run(opened, out, tile, report=lambda done, total: display.update("packing", done, total))
    stdout.print(f"{escape(str(out))}: {counted(pairs, 'pair')}")
