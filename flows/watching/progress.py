"""What a watcher of a run sees: a live progress artifact and log lines.

The work never waits for the Prefect server: a thread sends the latest state, and tries again while the server is unreachable.
"""

import hashlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self
from uuid import UUID

import httpx
from prefect.artifacts import create_link_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.console.pace import duration
from pipelines.cluster import ray_jobs
from pipelines.options import RegisteredTraining, SegmentOptions
from pipelines.segment.run import SegmentProgress

ARTIFACT_SECONDS = 2.0
LOG_SECONDS = (10.0, 60.0)  # between log lines: in the first two minutes, and later
ASK_SECONDS = 5.0


def slug(text: str) -> str:
    """A URI as a name for keys and limits: its last part and a short digest, in lower case with dashes."""
    last = re.sub(r"[^a-z0-9]+", "-", text.rstrip("/").rsplit("/", 1)[-1].lower()).strip("-")
    return f"{last[:32]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}".strip("-")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _percent(progress: SegmentProgress) -> float:
    everything = progress.already + progress.total
    return 100.0 * (progress.already + progress.done) / everything if everything else 100.0


@contextmanager
def best_effort(artifact: str) -> Iterator[None]:
    """For pages and links, on which nothing depends: an unreachable server is a warning in the log and does not end the run."""
    try:
        yield
    except httpx.TransportError as error:
        get_run_logger().warning(f"no {artifact} on the run's page: the Prefect server cannot be reached ({error})")


def run_as_job(kind: str, options: SegmentOptions | RegisteredTraining, key: str, event: ray_jobs.Tell) -> Any:
    """`ray_jobs.run` on the cluster that `address` names, with a link to the job on the run's page; returns the job's result."""
    jobs, logger = ray_jobs.Jobs(str(options.address)), get_run_logger()

    def started(job: str, attached: bool) -> None:
        logger.info(f"{'attached to' if attached else 'submitted'} job {job}")
        with best_effort("link to the job"):
            create_link_artifact(link=jobs.page(job), key=f"ray-{key}", description=f"Ray dashboard, job {job}")

    return ray_jobs.run(jobs, kind, options, started, event, logger.info)


class Watcher:
    """Shows the progress of the work on the run's page; a context manager, for use inside a flow.

    `show` takes a percentage and a sentence; `segmenting` is the `watch` of `pipelines.segment.run`. In a run without a runner
    the watcher also asks the server whether someone cancelled it, and then interrupts the main thread (KeyboardInterrupt).
    """

    def __init__(self, key: str, unit: str = "images") -> None:
        self.unit = unit
        self.logger = get_run_logger()
        self.run_ids = {flow_run.id, flow_run.root_flow_run_id or flow_run.id}  # a subflow of `refresh` is cancelled with it
        self.client = get_client(sync_client=True)
        self.artifact = ArtifactCreate(key=key, type="progress", flow_run_id=UUID(flow_run.id))
        self.id: UUID | None = None  # of the artifact, once the server has it
        self.supervised = "PREFECT__FLOW_RUN_ID" in os.environ
        self.latest = (0.0, "starting")
        self.begun = time.monotonic()
        self.phase, self.started, self.first, self.logged = "", time.monotonic(), 0, 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._send, name="progress", daemon=True)

    def __enter__(self) -> Self:
        # Not SIGINT: a command that a script starts in the background ignores it.
        self.watching = not self.supervised and threading.current_thread() is threading.main_thread()
        self.before = signal.signal(signal.SIGUSR1, _interrupt) if self.watching else None
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended.set()
        self.thread.join(timeout=10)
        if self.watching:
            signal.signal(signal.SIGUSR1, self.before)

    def show(self, percent: float, sentence: str, log: bool = False) -> None:
        """Set the latest state. `log` writes the log line at once; otherwise at most one in LOG_SECONDS is written."""
        self.latest = (min(100.0, percent), sentence)
        now = time.monotonic()
        if log or now - self.logged >= LOG_SECONDS[now - self.begun > 120]:
            self.logged = now
            self.logger.info(sentence)

    def segmenting(self, progress: SegmentProgress) -> None:
        """The watch of a segmentation. Percentages are of the whole archive: a continued run starts where the table stands."""
        if progress.phase == "inventory":
            self.show(0, "listing the archive", log=True)
        elif progress.phase == "plan":
            self.show(0, f"planning: {progress.total:,} images in the archive", log=True)
        elif progress.phase == "start":
            already = f"{progress.already:,} have a row"
            self.show(_percent(progress), f"{progress.total:,} images to do, {already}; starting Ray", log=True)
        else:
            self.counting(progress)

    def counting(self, progress: SegmentProgress) -> None:
        """Counts, rate and time left while images are being done."""
        now = time.monotonic()
        if self.phase != "counting":
            self.phase, self.started, self.first = "counting", now, progress.done
            self.begun = now
        rate = (progress.done - self.first) / max(now - self.started, 1e-9)
        parts = [f"{progress.done:,} of {progress.total:,} {self.unit} done, {progress.committed:,} committed"]
        parts += [f"{rate:.1f} {self.unit}/s"] if rate > 0 else []
        parts += [f"{progress.errors:,} errors"]
        if rate > 0 and progress.done < progress.total:
            parts.append(f"about {duration((progress.total - progress.done) / rate)} left")
        if progress.already:
            parts.append(f"{progress.already:,} had a row before")
        # Only a commit is final: short of the last one the ring stays below 100.
        whole = progress.committed >= progress.total
        self.show(100.0 if whole else min(99.0, _percent(progress)), ", ".join(parts), log=progress.phase == "commit")

    def _publish(self, percent: float, sentence: str) -> None:
        """Create the artifact, or update it."""
        if self.id is None:
            artifact = self.artifact.model_copy(update={"data": percent, "description": sentence})
            self.id = self.client.create_artifact(artifact).id
        else:
            self.client.update_artifact(self.id, ArtifactUpdate(data=percent, description=sentence))

    def _send(self) -> None:
        sent: tuple[float, str] | None = None
        asked = time.monotonic()
        while True:
            ended = self.ended.is_set()
            if (latest := self.latest) != sent:
                with suppress(Exception):  # the server is unreachable; tried again in the next round
                    self._publish(*latest)
                    sent = latest
            if ended:
                return
            if self.watching and time.monotonic() - asked >= ASK_SECONDS:
                asked = time.monotonic()
                with suppress(Exception):
                    states = [self.client.read_flow_run(run).state for run in self.run_ids]
                    if any(state is not None and state.is_cancelling() for state in states):
                        os.kill(os.getpid(), signal.SIGUSR1)
                        return
            self.ended.wait(ARTIFACT_SECONDS)
