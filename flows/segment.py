"""`segment-archive`: the segmentation as a flow of tasks: preflight, inventory, plan, segment, verify, report."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import Task, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.events import emit_event
from prefect.runtime import task_run
from prefect.states import Completed

from deeplab.errors import counted
from flows.options import ReportOptions
from flows.serving.cleanup import leave_nothing_behind
from flows.serving.settings import hourly_price, one_at_a_time
from flows.watching.progress import Watcher, best_effort, run_as_job, slug
from flows.watching.run_report import publish
from pipelines.archive.inventory import Inventory
from pipelines.cluster import ray_jobs
from pipelines.options import SegmentOptions
from pipelines.segment import run as steps
from pipelines.segment.plan import Plan
from pipelines.segment.run import Outcome, Run, SegmentProgress, Summary, TooManyErrors, Watch
from pipelines.storage import filesystems


def transient(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a retry may help: storage or the cluster failed, not the user's input."""
    try:
        state.result()
    except Exception as error:
        return filesystems.passes(error)
    return False


# Storage and the table say what is done, so no result is ever taken from Prefect's cache.
RETRIED = {"cache_policy": NO_CACHE, "retries": 2, "retry_delay_seconds": [5, 60], "retry_condition_fn": transient}


@task(name="preflight", cache_policy=NO_CACHE)
def preflight(options: SegmentOptions) -> Run:
    """Check that the model can be read and is complete, and that the Jobs API (if one is named) answers and accepts our token."""
    if ray_jobs.is_jobs(options.address):
        ray_jobs.Jobs(str(options.address))
    return steps.begin(options)


@task(name="inventory", **RETRIED)
def take_inventory(run: Run, folder: Path, watch: Watch) -> Inventory:
    return steps.take_inventory(run, folder, watch)


@task(name="plan", **RETRIED)
def make_plan(run: Run, listed: Inventory, folder: Path, watch: Watch) -> Plan:
    return steps.make_plan(run, listed, folder, watch)


@task(name="segment", **RETRIED)
def segment(run: Run, listed: Inventory, todo: Plan, folder: Path, watch: Watch) -> tuple[Plan, Outcome]:
    """The stream with its commits; a retry plans again and does what is missing."""
    if task_run.run_count > 1:
        todo = steps.make_plan(run, listed, folder, watch)
    return todo, steps.execute(run, todo, watch)


@task(name="verify", **RETRIED)
def verify(run: Run, listed: Inventory, todo: Plan, outcome: Outcome) -> Summary:
    """Check that each planned image has exactly one row and that errors are below the limit."""
    return steps.check(run, listed, todo, outcome)


@task(name="job", **RETRIED)
def run_job(options: SegmentOptions, place: str, watch: Watch) -> Summary:
    """The whole segmentation as one job on the cluster whose Jobs API `address` names; a retry attaches to a running job."""

    def on_event(event: dict[str, Any]) -> None:
        watch(SegmentProgress(**{name: event[name] for name in SegmentProgress.__dataclass_fields__}))

    return Summary(**run_as_job("segment", options, slug(place), on_event))


@task(name="verify", **RETRIED)
def verify_job(options: SegmentOptions, summary: Summary) -> Summary:
    """Check that the table has each row that the job reports, once, and that errors are below the limit."""
    return steps.check_rows(summary, options.max_error_rate)


@task(name="report", cache_policy=NO_CACHE)
@best_effort("report")
def make_report(summary: Summary, options: ReportOptions) -> None:
    publish(summary, options.hourly_price or hourly_price(), options.photos, options.page)


@flow(
    name="segment-archive",
    flow_run_name="segment {options.title}",
    description="Bring a results table up to date with an archive: exactly one row per image, version and model.",
    on_cancellation=[leave_nothing_behind],
    on_crashed=[leave_nothing_behind],
)
def segment_archive(options: SegmentOptions, report: ReportOptions = ReportOptions()) -> State[dict[str, Any]]:
    """Segment every image of the archive that has no row in the results table yet.

    Run it again after a crash or a cancellation, or with new images: only what is missing is done. Returns the summary.
    """
    place = filesystems.canonical(options.results)
    resource = {"prefect.resource.id": f"deeplab.results.{slug(place)}", "prefect.resource.name": place}
    with (
        one_at_a_time(place),  # two runs at once would do work twice, but no harm
        tempfile.TemporaryDirectory(prefix="deeplab-") as name,
        Watcher(f"progress-{slug(place)}") as watcher,
    ):
        folder = Path(name)

        def watch(progress: SegmentProgress) -> None:
            watcher.segmenting(progress)
            if progress.phase == "commit":
                payload = {"images": progress.committed, "errors": progress.errors, "version": progress.version}
                emit_event("deeplab.rows.committed", resource, payload=payload)

        run = preflight(options)
        try:
            if ray_jobs.is_jobs(options.address):
                summary = verify_job(options, run_job(options, place, watch))
            else:
                listed = take_inventory(run, folder, watch)
                todo, outcome = segment(run, listed, make_plan(run, listed, folder, watch), folder, watch)
                summary = verify(run, listed, todo, outcome)
        except TooManyErrors as error:
            make_report(error.summary, report)  # good rows are committed, and the report lists the errors
            raise
        make_report(summary, report)
    emit_event("deeplab.segmentation.finished", resource, payload=asdict(summary))
    others = f"; masks made with other settings: {summary.made_otherwise} (redo)" if summary.made_otherwise else ""
    if not summary.images:
        have = counted(summary.already, "image has", "images have")
        return Completed(message=f"nothing to do: {have} a row, none is left{others}", data=asdict(summary))
    done = f"{counted(summary.images, 'image')} done, {summary.errors} of them errors, {summary.already} had a row before"
    if summary.elsewhere:
        done += f", {summary.elsewhere} got it from another run meanwhile"
    return Completed(message=f"{done}; table version {summary.version}{others}", data=asdict(summary))
