"""`deeplab train` and `models`: models of one's own."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from flows import stopping
from flows.commands.architectures import print_family
from flows.commands.arguments import options_of
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
    steps: Annotated[int | None, typer.Option(help="Override the preset's steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Override the crops per step, over all workers.")] = None,
    crop: Annotated[int | None, typer.Option(help="Override the preset's crop.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Override the preset's learning rate.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Override how the rate falls: poly or step.")] = None,
    objective: Annotated[str | None, typer.Option(help="Override: single, or a loss per scale (MSC): official, kazuto.")] = None,
    ema: Annotated[float | None, typer.Option(help="Override the decay of the weights' running mean; 0 is off.")] = None,
    seed: Annotated[int | None, typer.Option(help="Override the preset's seed.")] = None,
    precision: Annotated[str | None, typer.Option(help="Override: float32, bfloat16 or float16.")] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Override the gradient's greatest length; 0 is off.")] = None,
    batch_norm: Annotated[str | None, typer.Option(help="Override: frozen or sync.")] = None,
    validate_every: Annotated[int | None, typer.Option(help="Override the steps between validations.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    loaders: Annotated[int, typer.Option(help="Processes that load images, per worker.")] = 1,
    accumulate: Annotated[int, typer.Option(help="Passes per worker that make one step: less memory, same result.")] = 1,
    compile: Annotated[bool, typer.Option("--compile", help="Run the network through torch.compile.")] = False,
    checkpoint_every: Annotated[int, typer.Option(help="Also save the state every so many steps.")] = 0,
    keep: Annotated[int, typer.Option(help="Newest states that stay; the best step's stays too.")] = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the unfinished training in MODEL_OUT.")] = False,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave broken pairs out instead of refusing.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that train together, through Ray Train.")] = 1,
    min_workers: Annotated[int | None, typer.Option(help="Go on with as few when nodes are lost.")] = None,
    resize_every: Annotated[float, typer.Option(help="Seconds between looks for more nodes, with --min-workers.")] = 60,
    address: Annotated[str | None, typer.Option(help="Ray cluster to train on: host:port or auto.")] = None,
    retries: Annotated[int, typer.Option(help="Restarts from the last state when a worker or node dies.")] = 3,
    start_timeout: Annotated[float, typer.Option(help="Seconds to wait for the cluster to give the workers.")] = 600,
) -> None:
    """Train on DATASET and write the best model to MODEL_OUT, which `deeplab segment --model` takes.

    The state is saved at every validation: after a crash the same command with --resume goes on bit for bit. SIGTERM
    and Ctrl-C save it first.
    """
    from deeplab.training import Progress, Stopped
    from pipelines.options import TrainOptions
    from pipelines.train import Notice
    from pipelines.train import train as run

    options = options_of(TrainOptions, train, locals())
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
    stdout.print(f"{escape(model_out)}: best at step {best['step']}, mIoU {best['mean_iou']:.4f} on {val_split}")


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
