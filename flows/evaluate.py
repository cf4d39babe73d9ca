"""`evaluate-model`: compare a model with the labels of a split."""

from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from deeplab.errors import counted
from flows.serving.cleanup import leave_nothing_behind
from flows.watching.progress import Watcher, best_effort, slug
from pipelines.options import EvaluateOptions
from pipelines.train.evaluation import evaluate


@task(name="evaluate", cache_policy=NO_CACHE)
def score(options: EvaluateOptions, watcher: Watcher) -> dict[str, Any]:
    return evaluate(options, lambda done, total: watcher.show(100 * done / total, f"{done} of {total} images scored"))


def figures_table(figures: dict[str, Any]) -> str:
    """The figures of an evaluation as Markdown."""
    images = f"{counted(figures['images'], 'image')} of `{figures['dataset']}`"
    lines = [f"# {figures['model']} on {figures['split']}", "", images, ""]
    lines += ["| class | IoU |", "|---|---:|"]
    lines += [f"| {name} | {'-' if value is None else f'{value:.4f}'} |" for name, value in figures["iou"].items()]
    for key in ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"):
        lines.append(f"| **{key.replace('_', ' ')}** | **{figures[key]:.4f}** |")
    return "\n".join(lines) + "\n"


@task(name="report", cache_policy=NO_CACHE)
@best_effort("report")
def make_report(figures: dict[str, Any], key: str) -> None:
    create_markdown_artifact(figures_table(figures), key=key, description=f"mIoU {figures['mean_iou']:.4f}")


@flow(
    name="evaluate-model",
    flow_run_name="evaluate {options.title}",
    description="One confusion matrix over a split: IoU per class, pixel and mean accuracy.",
    on_cancellation=[leave_nothing_behind],
    on_crashed=[leave_nothing_behind],
)
def evaluate_model(options: EvaluateOptions) -> State[dict[str, Any]]:
    key = slug(f"{options.model}/{options.dataset}")
    with Watcher(f"progress-{key}") as watcher:
        figures = score(options, watcher)
        make_report(figures, f"evaluation-{key}")
    return Completed(message=f"mIoU {figures['mean_iou']:.4f} on {counted(figures['images'], 'image')}", data=figures)
