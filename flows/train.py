"""`train-model`: preflight, data check, train, evaluate, register."""

import dataclasses
from typing import Any

from prefect import Task, flow, task
from prefect.artifacts import create_image_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.events import emit_event
from prefect.states import Completed

from deeplab.evaluation.plots import training_curves
from deeplab.training.loop import TrainingProgress
from flows.console.pace import TrainingPace, duration
from flows.evaluate import figures_table, score
from flows.serving.cleanup import leave_nothing_behind
from flows.watching.progress import Watcher, best_effort, run_as_job, slug
from flows.watching.run_report import picture_url
from pipelines.cluster import ray_jobs
from pipelines.cluster.ray_jobs import JobFailed
from pipelines.options import RegisteredTraining
from pipelines.storage.model_registry import Registry
from pipelines.train import flow_steps


def lost_job(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether the training was a job that something else ended: its states are kept, so a retry continues it."""
    try:
        state.result()
    except (JobFailed, ConnectionError):
        return True
    except Exception:
        return False
    return False


@task(name="preflight", cache_policy=NO_CACHE)
def preflight(options: RegisteredTraining) -> str:
    """Check that the registry and the Jobs API answer before hours are spent; returns a line on who holds the alias."""
    if ray_jobs.is_jobs(options.address):
        ray_jobs.Jobs(str(options.address))
    if options.registry is None:
        return "no registry: the model stays in its folder"
    registry = Registry(options.registry)
    registry.require_moves()
    holder = registry.alias(options.alias)
    return f"{options.alias} is held by {holder.label}" if holder else f"{options.alias} is free"


@task(name="data check", cache_policy=NO_CACHE)
def check_data(options: RegisteredTraining) -> dict[str, int]:
    return flow_steps.check_data(options)


@task(name="train", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[5, 60], retry_condition_fn=lost_job)
def train(options: RegisteredTraining, watcher: Watcher) -> dict[str, Any]:
    """The training itself; continues an unfinished one in the same folder."""
    pace = TrainingPace()

    def report(progress: TrainingProgress) -> None:
        pace.add(progress)
        parts = [f"step {progress.step:,} of {progress.steps:,}", f"loss {progress.loss:.4f}"]
        if progress.validation:
            parts.append(f"validation mIoU {progress.validation['mean_iou']:.4f}")
            parts += [waiting] if (waiting := pace.waiting()) else []
        if (left := pace.left()) is not None:
            parts.append(f"about {duration(left)} left")
        watcher.show(min(99.0, 100 * progress.step / progress.steps), ", ".join(parts), log=progress.validation is not None)

    if not ray_jobs.is_jobs(options.address):
        return flow_steps.train(options, report)

    def on_event(event: dict[str, Any]) -> None:
        report(TrainingProgress(**{field.name: event[field.name] for field in dataclasses.fields(TrainingProgress)}))

    best: dict[str, Any] = run_as_job("train", options, slug(options.out), on_event)
    return best


@task(name="register", cache_policy=NO_CACHE)
def register(options: RegisteredTraining, figures: dict[str, Any]) -> flow_steps.Registration:
    return flow_steps.register(options, figures)


@task(name="report", cache_policy=NO_CACHE)
@best_effort("report")
def make_report(options: RegisteredTraining, figures: dict[str, Any], registered: dict[str, Any] | None) -> None:
    """Publish the figures, whether the alias moved, and the curves as a picture."""
    key, validations = slug(options.out), flow_steps.curve(options.out)
    text = figures_table(figures)
    text += f"\n{registered['entry']}: {registered['reason']}\n" if registered else "\nNot registered: no registry was named.\n"
    if validations:
        picture = picture_url(training_curves(validations))
        create_image_artifact(image_url=picture, key=f"curves-{key}", description="Loss and mIoU over the steps")
        text += f"\n![loss and mIoU]({picture})\n\n| step | loss | mIoU |\n|---:|---:|---:|\n"
        text += "".join(f"| {v['step']} | {v['loss']:.4f} | {v['mean_iou']:.4f} |\n" for v in validations)
    create_markdown_artifact(text, key=f"training-{key}", description=f"mIoU {figures['mean_iou']:.4f} on {options.val_split}")


@flow(
    name="train-model",
    flow_run_name="train {options.title}",
    description="Train a model, measure it, and move the registry's alias to it if it is not worse.",
    on_cancellation=[leave_nothing_behind],
    on_crashed=[leave_nothing_behind],
)
def train_model(options: RegisteredTraining) -> State[dict[str, Any]]:
    """Returns the figures on `val_split`; `registered` says whether the alias moved, and why."""
    with Watcher(f"progress-{slug(options.out)}", "steps") as watcher:
        watcher.show(0, preflight(options), log=True)
        counts = check_data(options)
        watcher.show(0, ", ".join(f"{count:,} images in {split}" for split, count in counts.items()), log=True)
        train(options, watcher)
        figures = score(flow_steps.evaluation(options, options.out), watcher)
        del figures["confusion"]  # too large for an event
        registered = register(options, figures) if options.registry else None
        make_report(options, figures, registered)
        watcher.show(100, f"mIoU {figures['mean_iou']:.4f} on {options.val_split}")
    outcome = registered["reason"] if registered else "not registered"
    if registered and registered["moved"]:
        resource = {"prefect.resource.id": f"deeplab.registry.{slug(options.registry or '')}.{options.alias}"}
        emit_event("deeplab.model.promoted", resource, payload=registered)
    emit_event("deeplab.training.finished", {"prefect.resource.id": f"deeplab.model.{slug(options.out)}"}, payload=figures)
    message = f"{figures['model']}: mIoU {figures['mean_iou']:.4f} on {options.val_split}; {outcome}"
    return Completed(message=message, data={**figures, "registered": registered})
