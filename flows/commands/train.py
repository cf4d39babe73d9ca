"""`deeplab train` and `deeplab models`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from flows.commands.architectures import print_family
from flows.commands.parameters import Json, with_options
from flows.console import signals
from flows.console.terminal import bar, print_json, stdout
from pipelines.options import TrainOptions


@with_options
def train(options: TrainOptions) -> None:
    """Train on DATASET and write the best model to MODEL_OUT, which `deeplab segment --model` takes.

    The state is saved at every validation, and on SIGTERM and Ctrl-C. After a crash, the same command with --resume
    continues, with the same result bit for bit (one process, same CPU).
    """
    from deeplab.training.loop import CURVES, Stopped, TrainingProgress
    from flows.console.pace import TrainingPace, course, duration
    from pipelines.train import flow_steps
    from pipelines.train.ray_train import Notice
    from pipelines.train.ray_train import train as run

    pace = TrainingPace()
    with signals.request() as stop_code, bar("steps") as display:
        note = ""

        def watch(progress: TrainingProgress | Notice) -> None:
            nonlocal note
            if isinstance(progress, Notice):
                if progress.text:
                    display.progress.console.print(escape(progress.text))
                if progress.phase == "check":
                    display.update("checking pairs", progress.done, progress.total)
                return
            if estimate := pace.add(progress):
                display.progress.console.print(estimate)
            if progress.validation:
                note = f"  val mIoU {progress.validation['mean_iou']:.4f}"
                left = pace.left() if progress.step < progress.steps else None
                ahead = f", about {duration(left)} left" if left is not None else ""
                waiting = f", {share}" if (share := pace.waiting()) else ""
                display.progress.console.print(f"step {progress.step}: loss {progress.loss:.4f},{note}{ahead}{waiting}")
            display.update("training", progress.step, progress.steps, f"loss {progress.loss:.4f}{note}")

        try:
            best = run(options, watch, lambda: bool(stop_code()))
        except Stopped as error:
            display.progress.console.print(escape(str(error)))
            raise typer.Exit(stop_code() or 1) from None
    if validations := flow_steps.curve(options.model_out):
        line = course([entry["loss"] for entry in validations], [entry["mean_iou"] for entry in validations])
        stdout.print(f"{line} (drawn in {escape(options.model_out)}/{CURVES})")
    stdout.print(f"{escape(options.model_out)}: best at step {best['step']}, mIoU {best['mean_iou']:.4f} on {options.val_split}")


def models(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Print the whole card of this model.", show_default=False)
    ] = None,
    presets: Annotated[bool, typer.Option("--presets", help="List training presets instead.")] = False,
    architectures: Annotated[
        bool, typer.Option("--all", help="List every architecture: stride, parameters, GFLOP, field of view, the papers' figures.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List bundled models and known architectures, or training presets; or print one model's card."""
    from deeplab import zoo
    from deeplab.models import checkpoint
    from deeplab.training.presets import PRESETS

    if model is not None:
        print_json({"digest": checkpoint.load(model).digest, **checkpoint.read_card(model)})
        return
    if architectures:
        print_family(as_json)
        return
    if presets:
        if as_json:
            print_json({key: preset().as_dict() for key, preset in PRESETS.items()})
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
