"""`deeplab train` and `models`: models of one's own."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated

import typer
from rich.markup import escape

from deeplab.presets import PRESETS
from flows import stopping
from flows.commands.architectures import print_family
from flows.terminal import bar, print_json, stdout

Layout = Annotated[
    str,
    typer.Option(help="auto, plain, voc2012, cityscapes, ade20k, pascal-context, person-part or coco-stuff."),
]


def train(
    dataset: Annotated[
        str, typer.Argument(help="Folder or s3:// prefix of labelled images (docs/training.md).", show_default=False)
    ],
    model_out: Annotated[str, typer.Argument(help="Model folder or s3:// prefix to write.", show_default=False)],
    preset: Annotated[str, typer.Option(help="Training preset; `deeplab models --presets` lists them.")] = "finetune",
    init: Annotated[
        str, typer.Option(help="Weights to start from: a model, or ImageNet .safetensors in torchvision's keys.")
    ] = "pets",
    layout: Layout = "auto",
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    val_split: Annotated[str, typer.Option(help="Split to choose the best weights on.")] = "val",
    name: Annotated[str | None, typer.Option(help="Name in the model card; default MODEL_OUT's folder name.")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the data, for the model card.")] = "not stated",
    steps: Annotated[int | None, typer.Option(min=1, help="Override the preset's steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Override the crops per step, over all workers.")] = None,
    crop: Annotated[int | None, typer.Option(min=33, help="Override the preset's crop.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Override the preset's learning rate.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Override how the rate falls: poly or step.")] = None,
    objective: Annotated[str | None, typer.Option(help="Override: single, or a loss per scale (MSC): official, kazuto.")] = None,
    ema: Annotated[float | None, typer.Option(help="Override the decay of the weights' running mean; 0 is off.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Override the preset's seed.")] = None,
    precision: Annotated[str | None, typer.Option(help="Override: float32, bfloat16 or float16.")] = None,
    clip_norm: Annotated[float | None, typer.Option(min=0, help="Override the gradient's greatest length; 0 is off.")] = None,
    batch_norm: Annotated[str | None, typer.Option(help="Override: frozen or sync.")] = None,
    validate_every: Annotated[int | None, typer.Option(min=1, help="Override the steps between validations.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    loaders: Annotated[int, typer.Option(min=0, help="Processes that load images, per worker.")] = 1,
    accumulate: Annotated[int, typer.Option(min=1, help="Passes per worker that make one step: less memory, same result.")] = 1,
    compile: Annotated[bool, typer.Option("--compile", help="Run the network through torch.compile.")] = False,
    checkpoint_every: Annotated[int, typer.Option(min=0, help="Also save the state every so many steps.")] = 0,
    keep: Annotated[int, typer.Option(min=1, help="Newest states that stay; the best step's stays too.")] = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the unfinished training in MODEL_OUT.")] = False,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave broken pairs out instead of refusing.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train together, through Ray Train.")] = 1,
    min_workers: Annotated[int | None, typer.Option(min=1, help="Go on with as few when nodes are lost.")] = None,
    resize_every: Annotated[float, typer.Option(help="Seconds between looks for more nodes, with --min-workers.")] = 60,
    address: Annotated[str | None, typer.Option(help="Ray cluster to train on: host:port or auto.")] = None,
    retries: Annotated[int, typer.Option(min=0, help="Restarts from the last state when a worker or node dies.")] = 3,
    start_timeout: Annotated[float, typer.Option(help="Seconds to wait for the cluster to give the workers.")] = 600,
) -> None:
    """Train on DATASET and write the best model to MODEL_OUT, which `deeplab segment --model` takes.

    The state is saved at every validation: after a crash the same command with --resume goes on bit for bit. SIGTERM
    and Ctrl-C save it first.
    """
    from pydantic import ValidationError

    from deeplab.training import Progress, Stopped
    from pipelines.options import TrainOptions
    from pipelines.train import Notice
    from pipelines.train import train as run

    given = {key: value for key, value in locals().items() if key in TrainOptions.model_fields}
    try:
        options = TrainOptions(**given)
    except ValidationError as error:
        problem = error.errors()[0]
        flag = "--" + str(problem["loc"][0]).replace("_", "-")
        raise typer.BadParameter(f"{problem['msg']} (got {problem['input']!r})", param_hint=flag) from None
    if preset not in PRESETS:
        near = get_close_matches(preset, PRESETS, n=1, cutoff=0.0)[0]
        raise typer.BadParameter(f"{preset}: nearest {near}; known: {', '.join(PRESETS)}", param_hint="--preset")
    with stopping.request() as asked, bar("steps") as display:
        note = ""

        def watch(progress: Progress | Notice) -> None:
            nonlocal note
            if isinstance(progress, Notice):
                if progress.text:
                    display.progress.console.print(escape(progress.text))
                if progress.phase == "check":
                    display.update("checking pairs", progress.done, progress.total)
                return
            if progress.validation:
                note = f"  val mIoU {progress.validation['mean_iou']:.4f}"
                display.progress.console.print(f"step {progress.step}: loss {progress.loss:.4f},{note}")
            display.update("training", progress.step, progress.steps, f"loss {progress.loss:.4f}{note}")

        try:
            best = run(options, watch, lambda: bool(asked()))
        except Stopped as error:
            display.progress.console.print(escape(str(error)))
            raise typer.Exit(asked() or 1) from None
    stdout.print(f"{model_out}: best at step {best['step']}, mIoU {best['mean_iou']:.4f} on {val_split}")


def models(
    model: Annotated[str | None, typer.Argument(help="Print the whole card of this model.", show_default=False)] = None,
    presets: Annotated[bool, typer.Option("--presets", help="List training presets instead.")] = False,
    every: Annotated[
        bool, typer.Option("--all", help="List every architecture: stride, parameters, GFLOP, field of view, the papers' figures.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Bundled models and known architectures, training presets, or one model's card."""
    from deeplab import checkpoint, zoo
    from deeplab.presets import PRESETS

    if model is not None:
        print_json({"digest": checkpoint.load(model).digest, **checkpoint.read_card(model)})
        return
    if every:
        print_family(as_json)
        return
    if presets:
        listed = {key: preset().as_dict() for key, preset in PRESETS.items()}
        if as_json:
            print_json(listed)
            return
        for key, preset in PRESETS.items():
            stdout.print(f"[bold]{key}[/]  {escape((preset.__doc__ or '').strip())}")
        return
    cards = {key: checkpoint.read_card(key) for key in checkpoint.bundled()}
    if as_json:
        print_json({"models": cards, "architectures": {k: a.summary for k, a in zoo.ARCHITECTURES.items()}})
        return
    for key, card in cards.items():
        names = ", ".join(entry["name"] for entry in card["classes"])
        stdout.print(f"[bold]{key}[/]  {card['architecture']['name']}; classes: {names}; {card.get('summary', '')}")
    stdout.print("\narchitectures:")
    for architecture in zoo.ARCHITECTURES.values():
        stdout.print(f"  [bold]{architecture.name}[/]  {architecture.summary}  [dim]({architecture.source})[/]")
