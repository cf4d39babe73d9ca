"""`segment-archive`: the segmentation as a flow of a few tasks: preflight, inventory, plan, chunks, verify, report."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_link_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.states import Completed

from flows.hooks import leave_nothing_behind
from flows.options import ReportOptions
from flows.progress import Watcher, slug
from flows.report import publish
from flows.settings import hourly_price, one_at_a_time
from pipelines import cluster, inventory, plan, remote, storage
from pipelines.options import SegmentOptions
from pipelines.segment import Progress, Segmentation, Summary, TooManyErrors, Work


def transient(task: Any, run: Any, state: State[Any]) -> bool:
    """Whether another try may help: storage or the cluster was in trouble, not the user's input."""
    try:
        state.result()
    except Exception as error:
        return storage.passes(error)
    return False


# The truth is in storage and the table, so nothing is ever taken from a cache; what is done is found there.
again = {"cache_policy": NO_CACHE, "retries": 2, "retry_delay_seconds": [5, 60], "retry_condition_fn": transient}


@task(name="preflight", cache_policy=NO_CACHE)
def preflight(options: SegmentOptions, folder: Path, watcher: Watcher) -> Segmentation:
    """The model can be read and is whole; a Jobs API that is to do the work answers, and takes our token."""
    if remote.is_jobs(options.address):
        remote.Jobs(str(options.address))
    return Segmentation(options, folder, watcher.segmenting)


@task(name="inventory", **again)
def take_inventory(run: Segmentation) -> inventory.Inventory:
    return run.take_inventory()


@task(name="plan", **again)
def make_plan(run: Segmentation) -> plan.Plan:
    return run.make_plan()


@task(name="chunk", task_run_name="chunk {work.number} of {count}", **again)
def run_chunk(run: Segmentation, work: Work, count: int) -> None:
    """One Ray Data execution and one commit; a repetition finds what is committed and does nothing."""
    run.run_chunk(work)


@task(name="job", **again)
def run_job(run: Segmentation, place: str, watcher: Watcher) -> None:
    """All chunks, as one job on the cluster whose Jobs API `address` names; a repetition attaches to the job that runs."""
    options, logger = run.options, get_run_logger()
    jobs = remote.Jobs(str(options.address))

    def started(job: str, attached: bool) -> None:
        logger.info(f"{'attached to' if attached else 'submitted'} job {job}")
        create_link_artifact(link=jobs.page(job), key=f"ray-{slug(place)}", description=f"Ray dashboard, job {job}")
        run.watch(Progress("start", run.plan.images, chunks=run.plan.chunk_count))

    def event(told: dict[str, Any]) -> None:
        progress = Progress(**{name: told[name] for name in ("phase", "total", "done", "errors", "chunk", "chunks")})
        if progress.phase in ("segment", "commit"):
            # A job that began before this run counts from its own plan.
            watcher.already = max(0, run.summary.archive_images - progress.total)
            run.watch(progress)

    run.adopt(Summary(**remote.run(jobs, "segment", options, started, event, logger.info)))


@task(name="verify", **again)
def verify(run: Segmentation) -> Summary:
    """Each planned image has exactly one row, and errors are below the limit."""
    return run.check()


@task(name="report", cache_policy=NO_CACHE)
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
    """Segment every image of the archive that the results table has no mask of yet.

    Run it again after a crash, a cancellation or with new images: only what is missing is done. Returns the summary.
    """
    place = storage.canonical(options.results)
    resource = {"prefect.resource.id": f"deeplab.results.{slug(place)}", "prefect.resource.name": place}
    with (
        one_at_a_time(place),  # two would do work twice, not harm
        tempfile.TemporaryDirectory(prefix="deeplab-") as folder,
        Watcher(f"progress-{slug(place)}") as watcher,
    ):
        run = preflight(options, Path(folder), watcher)

        def watch(progress: Progress) -> None:
            watcher.segmenting(progress)
            if progress.phase == "commit":
                run.table.refresh()
                payload = {"chunk": progress.chunk, "chunks": progress.chunks, "images": progress.done, "errors": progress.errors}
                emit_event("deeplab.chunk.committed", resource, payload={**payload, "version": run.table.version})

        run.watch = watch
        take_inventory(run)
        todo = make_plan(run)
        watcher.already = todo.done
        if not todo.images:
            watcher.show(100, f"nothing to do: all {todo.done:,} images have their row", log=True)
        elif remote.is_jobs(options.address):
            run_job(run, place, watcher)
        else:
            with run.chunks() as chunks:
                if url := cluster.dashboard():
                    create_link_artifact(link=url, key=f"ray-{slug(place)}", description="Ray dashboard")
                for work in chunks:
                    run_chunk(run, work, todo.chunk_count)
        try:
            summary = verify(run)
        except TooManyErrors:
            make_report(run.summary, report)  # what is good is committed, and the errors are what the reader wants to see
            raise
        make_report(summary, report)
    emit_event("deeplab.segmentation.finished", resource, payload=asdict(summary))
    done = f"{summary.images} images done, {summary.errors} of them errors, {summary.already} had their row before"
    if summary.elsewhere:
        done += f", {summary.elsewhere} got it from another run meanwhile"
    return Completed(message=f"{done}; table version {summary.version}", data=asdict(summary))
