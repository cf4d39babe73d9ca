"""`deeplab import-weights`, `ensemble` and `models --all`: model folders made of others' weights, and the known architectures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from flows.console.terminal import plain_table, print_json, stdout


def import_weights(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=".pth, .safetensors, .caffemodel or .tflite.", show_default=False)],
    model_out: Annotated[Path, typer.Argument(metavar="MODEL_OUT", help="Model folder to write.", show_default=False)],
    family: Annotated[str, typer.Option(help="Code base that wrote FILE: kazuto, isht7, torchvision, caffe or tflite.")] = "kazuto",
    classes: Annotated[
        Path | None, typer.Option(help="Text file with a class name per line. Default: VOC's for 21 classes, else class 0, 1, ...")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the model card; default MODEL_OUT's folder name.")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights, for the model card.")] = "not stated",
) -> None:
    """Turn weights of another code base into a model folder, with that code's geometry. No code in FILE is ever run.

    Strict: nothing is written unless every weight of the network is filled and every weight in FILE is used.
    """
    from deeplab import text_lists, weights
    from deeplab.classes import VOC, ClassTable
    from deeplab.models import checkpoint
    from deeplab.safe_names import model_name, name_after

    name = name_after(model_out.resolve().name) if name is None else model_name(name)
    if family not in weights.FAMILIES:
        raise typer.BadParameter(f"{family}: {', '.join(weights.FAMILIES)} are known", param_hint="--family")
    imported = weights.import_file(file, family)
    count = imported.network.classes
    if classes is not None:
        try:
            names = [line for _, line in text_lists.lines(classes.read_bytes(), str(classes))]
        except (OSError, text_lists.ListError) as error:
            raise typer.BadParameter(str(error), param_hint="--classes") from error
        if len(names) != count or len(set(names)) != count:
            raise typer.BadParameter(
                f"{classes} names {len(set(names))} different classes, the weights have {count}", param_hint="--classes"
            )
        table = ClassTable.from_names(names)
    else:
        table = VOC if count == len(VOC) else ClassTable.from_names([f"class {index}" for index in range(count)])
    card = {
        "name": name,
        "architecture": {"name": imported.architecture, "options": imported.options},
        "classes": [{"name": n, "colour": list(c)} for n, c in zip(table.names, table.colours, strict=True)],
        "geometry": asdict(imported.network.geometry),
        "init": f"{file.name}, family {family}",
        "data": {"licence": licence},
    }
    # The 8-bit codes of a .tflite need no more than half precision; other scores would differ from theirs by one in a thousand.
    checkpoint.save(model_out, imported.network, card, half=family == "tflite")
    stdout.print(
        f"{escape(str(model_out))}: {imported.architecture}, {count} classes, {len(imported.network.state_dict())} tensors filled"
    )
    for key in imported.left_out:
        stdout.print(f"  left out: {escape(key)}")


def ensemble(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Two or more models: bundled, folder or REGISTRY@ALIAS.", show_default=False),
    ],
    model_out: Annotated[Path, typer.Option("--out", "-o", metavar="<folder>", help="Model folder to write.", show_default=False)],
    rule: Annotated[
        str, typer.Option(help="mean of the members' scores, or product: those of the first times the positive ones of the others.")
    ] = "mean",
    name: Annotated[str | None, typer.Option(help="Name in the model card; default the folder's name.")] = None,
) -> None:
    """Combine models of the same classes into one model folder, which holds copies of all of them."""
    from typing import get_args

    from deeplab.models import ensemble as ensembles
    from deeplab.models.card import Rule
    from deeplab.safe_names import model_name, name_after
    from pipelines.storage.model_registry import read_model

    rules: dict[str, Rule] = {accepted: accepted for accepted in get_args(Rule)}
    if rule not in rules:
        raise typer.BadParameter(f"{rule}: {' or '.join(rules)} is accepted", param_hint="--rule")
    if len(models) < 2:
        raise typer.BadParameter("two or more are accepted", param_hint="MODEL...")
    name = name_after(model_out.resolve().name) if name is None else model_name(name)
    members = ensembles.save(model_out, name, [read_model(model) for model in models], rules[rule])
    labels = ", ".join(member.label for member in members)
    stdout.print(f"{escape(str(model_out))}: {rule} of {escape(labels)}; {len(members[0].classes)} classes", soft_wrap=True)


def print_family(as_json: bool) -> None:
    """Print name, stride, parameters, GFLOP at 513 x 513, field of view and the papers' figures of every architecture."""
    from deeplab.zoo.sizes import measure_all

    rows = measure_all()
    if as_json:
        print_json([row.as_dict() for row in rows])
        return
    table = plain_table("name", "stride", "parameters", "GFLOP", "view", "val", "+ CRF", "test")
    for row in rows:
        figures = ["-" if value is None else f"{value:.2f}" for value in (row.val, row.val_crf)]
        test = "-" if row.test is None else f"{row.test:.1f}"
        view = str(row.field_of_view) if row.field_of_view else "image"
        numbers = f"{row.parameters / 1e6:.1f} M", f"{row.gflop:.0f}"
        table.add_row(row.name, str(row.stride), *numbers, view, *figures, test)
    stdout.print(table)
    stdout.print(
        "21 classes, 513 x 513; a multiply-add counts as two. Figures: the papers' mIoU on PASCAL VOC 2012 (docs/family.md)"
    )
