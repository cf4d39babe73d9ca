"""`segment-archive`: the segmentation as a flow of a few tasks: preflight, inventory, plan, chunks, verify, report."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_link_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.events import emit_event
from prefect.states import Completed

from flows.hooks import leave_nothing_behind
from flows.options import ReportOptions
from flows.progress import Watcher, slug
from flows.report import publish
from flows.settings import hourly_price, limit_name
from pipelines import cluster, inventory, plan, storage
from pipelines.options import SegmentOptions
from pipelines.segment import Segmentation, SegmentError, Summary, TooManyErrors, Work

# The lock of a table is let go this long after its holder died.
LEASE_SECONDS = 60


def transient(task: Any, run: Any, state: State[Any]) -> bool:
    """Whether another try may help: storage or the cluster was in trouble, not the user's input."""
    try:
        state.result()
    except (SegmentError, ConnectionError, TimeoutError):
        return True
    except OSError as error:
        return not isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError)
    except Exception:
        return False
    return False


# The truth is in storage and the table, so nothing is ever taken from a cache; what is done is found there.
again = {"cache_policy": NO_CACHE, "retries": 2, "retry_delay_seconds": [5, 60], "retry_condition_fn": transient}


@task(name="preflight", cache_policy=NO_CACHE)
def preflight(options: SegmentOptions, folder: Path, watcher: Watcher) -> Segmentation:
    """The model can be read and is whole."""
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


@task(name="verify", **again)
def verify(run: Segmentation) -> Summary:
    """Each planned image has exactly one row, and errors are below the limit."""
    return run.check()


@task(name="report", cache_policy=NO_CACHE)
def make_report(summary: Summary, options: ReportOptions) -> None:
    publish(summary, options.hourly_price or hourly_price(), options.photos)


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
        # One run a table, where `deeplab setup-prefect --results` made the limit; two would do work twice, not harm.
        concurrency(limit_name(place), lease_duration=LEASE_SECONDS, strict=False),
        tempfile.TemporaryDirectory(prefix="deeplab-") as folder,
        Watcher(f"progress-{slug(place)}") as watcher,
    ):
        run = preflight(options, Path(folder), watcher)
        take_inventory(run)
        todo = make_plan(run)
        watcher.already = todo.done
        if todo.images:
            with run.chunks() as chunks:
                if url := cluster.dashboard():
                    create_link_artifact(link=url, key=f"ray-{slug(place)}", description="Ray dashboard")
                for work in chunks:
                    errors = run.summary.errors
                    run_chunk(run, work, todo.chunk_count)
                    payload = {"chunk": work.name, "run": run.summary.run, "images": work.images.num_rows}
                    payload |= {"errors": run.summary.errors - errors, "version": run.table.version}
                    emit_event("deeplab.chunk.committed", resource, payload=payload)
        else:
            watcher.show(100, f"nothing to do: all {todo.done:,} images have their row", log=True)
        try:
            summary = verify(run)
        except TooManyErrors:
            make_report(run.summary, report)  # what is good is committed, and the errors are what the reader wants to see
            raise
        make_report(summary, report)
    emit_event("deeplab.segmentation.finished", resource, payload=asdict(summary))
    done = f"{summary.images} images done, {summary.errors} of them errors, {summary.already} had their row before"
    return Completed(message=f"{done}; table version {summary.version}", data=asdict(summary))
