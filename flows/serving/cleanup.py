"""After a cancelled or crashed run: end its processes on this host and its job on a cluster."""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State

from deeplab.errors import UserError
from flows.console import error_messages
from pipelines.cluster import ray_jobs
from pipelines.options import RegisteredTraining, SegmentOptions

error_messages.in_log("prefect.flow_runs", "prefect.task_runs", "prefect.engine")  # here, as every flow imports this module

GRACE_SECONDS = 5.0
MARKER = "PREFECT__FLOW_RUN_ID"


def leave_nothing_behind(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook: end what a run's dead process left behind. Ray's processes carry the run's id in their environment.

    If runner and run died together, no hook runs: a job then continues, and the next run of the same work attaches to it.
    """
    end_processes(f"{MARKER}={flow_run.id}")
    for kind, options in _works(flow_run.parameters):
        if ray_jobs.is_jobs(options.address):
            with suppress(UserError, OSError, RuntimeError):  # the cluster is unreachable: nothing to stop there
                ray_jobs.Jobs(str(options.address)).stop(ray_jobs.job_name(kind, options))


def _works(parameters: Mapping[str, object]) -> Iterator[tuple[str, SegmentOptions | RegisteredTraining]]:
    """(kind, options) of every job that a run with these parameters may have submitted."""
    for parameter in parameters.values():
        for kind, options in (("segment", SegmentOptions), ("train", RegisteredTraining)):
            with suppress(ValueError, TypeError):
                yield kind, options.model_validate(parameter)


def end_processes(marker: str, grace: float = GRACE_SECONDS) -> int:
    """End all processes of this host, except this one, that were started with `marker` (NAME=value) in their environment.

    They get `grace` seconds to end by themselves, as Ray's do when their driver dies, then SIGKILL. Returns how many there were.
    """
    first = set(marked(marker))
    deadline = time.monotonic() + grace
    while _any_marked(marker) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in marked(marker):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return len(first)


def _any_marked(marker: str) -> bool:
    return next(marked(marker), None) is not None


def marked(marker: str) -> Iterator[int]:
    """Pids on this host, except this one, that were started with `marker` in their environment."""
    wanted = marker.encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            pid = int(folder.name)
            if pid != os.getpid() and wanted in (folder / "environ").read_bytes().split(b"\0"):
                yield pid
