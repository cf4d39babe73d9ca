"""A run as a job on a Ray cluster, through its Jobs API: submit or attach, follow its lines, stop it.

The job is `python -m pipelines.job_program KIND OPTIONS` on the cluster's head. This process reaches it by HTTP alone: it needs
neither access to the cluster's network nor the same Python. The nodes need this package, the storage and their own credentials.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import queue
import shlex
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypedDict
from urllib.parse import urlsplit

from pydantic import BaseModel
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from deeplab.errors import UserError
from pipelines.cluster.connection import ClusterError, token

REQUEST_SECONDS = 30
POLL_SECONDS = 1.0
ABSENCE_SECONDS = 120.0  # after so long without an answer of the head, this attempt fails
STOP_SECONDS = 8.0  # Ray gives a stopped job 3 s before it kills it
EVENT = "deeplab"  # the key that marks a line of the job as an event
UNFORESEEN = "Unforeseen"  # the class in an error event whose error is not one of ours

Tell = Callable[[dict[str, Any]], None]


class ErrorEvent(TypedDict):
    """The last event of a job that failed: class and message of the error, and whether another attempt may succeed."""

    error: str
    message: str
    passing: bool


class JobFailed(UserError):
    """The job failed for a reason of the system's, or someone else stopped it; another attempt may succeed."""

    passing = True


class JobRefused(UserError):
    """The job ended with one of our own errors. `kind`: its class; the message is the original one."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def is_jobs(address: str | None) -> bool:
    """Whether an address is a Jobs API (http://host:8265) and not a cluster to join."""
    return address is not None and address.startswith(("http://", "https://"))


class _Client(JobSubmissionClient):
    """Ray's client with a timeout: without one it waits for a silent head forever."""

    def _do_request(self, *arguments: Any, **options: Any) -> Any:
        return super()._do_request(*arguments, timeout=REQUEST_SECONDS, **options)


class Jobs:
    """The Jobs API of one cluster. Raises ClusterError if there is none, or if the token is missing or wrong."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        if not urlsplit(self.address).hostname:
            raise ClusterError(f"address {address!r}: http://HOST:8265 of a Ray head's dashboard is accepted")
        secret = token()
        headers = {"Authorization": f"Bearer {secret}"} if secret else None
        before = os.environ.get("RAY_API_SERVER_ADDRESS")
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # RAY_ADDRESS takes precedence over the argument
        try:
            self.client = _Client(self.address, headers=headers)
        except AuthenticationError as error:
            refusal = "does not accept this token" if secret else "requires a token"
            raise ClusterError(
                f"{address} {refusal}: RAY_AUTH_TOKEN, or a file named by RAY_AUTH_TOKEN_PATH, must hold the cluster's token"
            ) from error
        except (OSError, RuntimeError, ValueError) as error:
            raise ClusterError(f"no Jobs API at {address} ({error}); the dashboard of a Ray head is accepted") from error
        finally:
            if before is None:
                del os.environ["RAY_API_SERVER_ADDRESS"]
            else:
                os.environ["RAY_API_SERVER_ADDRESS"] = before

    def attempts(self, name: str) -> list[JobDetails]:
        """The jobs NAME-1, NAME-2, ... that the cluster knows, oldest first."""
        jobs = [job for job in self.client.list_jobs() if (job.submission_id or "").rpartition("-")[0] == name]
        return sorted(jobs, key=lambda job: int(job.submission_id.rpartition("-")[2]))

    def live(self, name: str) -> JobDetails | None:
        """The attempt that has not ended; None if there is none."""
        return next((job for job in self.attempts(name) if not job.status.is_terminal()), None)

    def begin(self, name: str, kind: str, options: BaseModel) -> tuple[str, bool]:
        """(submission id of the job, whether it was already running): the same work is never submitted twice at once."""
        attempts = self.attempts(name)
        if attempts and not attempts[-1].status.is_terminal():
            return str(attempts[-1].submission_id), True
        number = int(attempts[-1].submission_id.rpartition("-")[2]) + 1 if attempts else 1
        job = f"{name}-{number}"
        text = options.model_dump_json(exclude={"address"}, exclude_defaults=True)
        command = f"exec python -P -m pipelines.job_program {kind} {shlex.quote(text)}"
        try:
            self.client.submit_job(entrypoint=command, submission_id=job, metadata={"deeplab": kind})
        except RuntimeError:
            if self.live(name) is None:  # otherwise another run has just submitted the same work
                raise
        return job, False

    def stop(self, name: str, patience: float = STOP_SECONDS) -> bool:
        """Stop the running attempt and wait up to `patience` seconds for its end; returns whether there was one."""
        job = self.live(name)
        if job is None:
            return False
        self.client.stop_job(job.submission_id)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and not self.client.get_job_status(job.submission_id).is_terminal():
            time.sleep(0.2)
        return True

    def page(self, job: str) -> str:
        """The job's page on the dashboard."""
        return f"{self.address}/#/jobs/{job}"

    def follow(self, job: str, tell: Callable[[str], None]) -> JobDetails:
        """Pass every line of the job to `tell` until it ends; returns how it ended.

        Raises ConnectionError if the head does not answer for ABSENCE_SECONDS; the job may continue.
        """
        lines: queue.Queue[str] = queue.Queue()
        tail = threading.Thread(target=lambda: asyncio.run(self._tail(job, lines)), name=f"tail {job}", daemon=True)
        tail.start()
        last_answer = time.monotonic()
        while True:
            try:
                details = self.client.get_job_info(job)
                last_answer = time.monotonic()
            except (OSError, RuntimeError) as error:
                if time.monotonic() - last_answer > ABSENCE_SECONDS:
                    raise ConnectionError(f"{self.address} does not answer any more ({error}); {job} may still run") from error
                details = None
            ended = details is not None and details.status.is_terminal()
            if ended:
                tail.join(REQUEST_SECONDS)  # the last lines
            with suppress(queue.Empty):
                while True:
                    tell(lines.get_nowait())
            if ended:
                return details
            time.sleep(POLL_SECONDS)

    async def _tail(self, job: str, lines: queue.Queue[str]) -> None:
        """Put the job's lines into `lines`; after a lost connection, continue where it was lost."""
        seen = 0
        while True:
            number, rest = 0, ""
            try:
                async for text in self.client.tail_job_logs(job):
                    *whole, rest = (rest + text).split("\n")
                    for line in whole:
                        number += 1
                        if number > seen:
                            lines.put(line)
                            seen = number
                if rest:
                    lines.put(rest)
                return
            except Exception:  # the head is away; `follow` decides how long to wait
                await asyncio.sleep(POLL_SECONDS)
                with suppress(Exception):
                    if self.client.get_job_status(job).is_terminal():
                        for line in self.client.get_job_logs(job).splitlines()[seen:]:
                            lines.put(line)
                        return


def job_name(kind: str, options: BaseModel) -> str:
    """A name made from the work alone, by which whoever asks for the same work again finds its job."""
    text = options.model_dump_json(exclude={"address"})
    return f"deeplab-{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def run(
    jobs: Jobs, kind: str, options: BaseModel, started: Callable[[str, bool], None], event: Tell, line: Callable[[str], None]
) -> dict[str, Any]:
    """Do the work as a job and return its result. An interruption of this process stops the job.

    `started` gets the job's id and whether it was already running, `event` each progress event, `line` every line that is not an
    event. Raises JobRefused for our own errors, JobFailed and ConnectionError for faults of the system.
    """
    name = job_name(kind, options)
    result: dict[str, Any] | None = None
    error: ErrorEvent | None = None

    def tell(text: str) -> None:
        nonlocal result, error
        values = parse(text)
        if values is None:
            if text.strip():
                line(text)
        elif values[EVENT] == "result":
            result = values["result"]
        elif values[EVENT] == "error":
            error = ErrorEvent(error=values["error"], message=values["message"], passing=values["passing"])
        else:
            event(values)

    try:
        job, attached = jobs.begin(name, kind, options)
        started(job, attached)
        details = jobs.follow(job, tell)
    except RuntimeError as failure:  # from Ray's client, for an answer other than 200
        raise JobFailed(f"{jobs.address}: {failure}") from failure
    except Exception:
        raise
    except BaseException:
        with suppress(Exception):
            jobs.stop(name)
        raise
    if error is not None and error["passing"]:
        raise JobFailed(f"job {job}: {error['message']}; its log: {jobs.page(job)}")
    if error is not None:
        raise JobRefused(error["error"], error["message"])
    if details.status == JobStatus.SUCCEEDED and result is not None:
        return result
    end = "was stopped" if details.status == JobStatus.STOPPED else "failed"
    raise JobFailed(f"job {job} {end}: {details.message}; its log: {jobs.page(job)}")


def parse(text: str) -> dict[str, Any] | None:
    """The event in a line of a job; None for any other line."""
    if not text.startswith("{"):
        return None
    try:
        values = json.loads(text)
    except ValueError:
        return None
    return values if isinstance(values, dict) and EVENT in values else None
