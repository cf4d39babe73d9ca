"""A run as a job on a Ray cluster, through its Jobs API: submit or attach, follow its lines, stop it.

The job is `python -m pipelines.job KIND OPTIONS` on the cluster's head, so only HTTP leads there: neither the network
between its nodes nor the same Python is needed here. Its nodes need this package, the storage and credentials of their own.
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
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from deeplab.errors import UserError
from pipelines.cluster.connection import ClusterError, token

REQUEST_SECONDS = 30
POLL_SECONDS = 1.0
ABSENCE_SECONDS = 120.0  # a head that is silent for so long is gone for this try
STOP_SECONDS = 8.0  # Ray gives a stopped job 3 s before it kills it
EVENT = "deeplab"  # the key that marks a line of the job as an event
UNFORESEEN = "Unforeseen"  # the class of an error event that is none of our own

Tell = Callable[[dict[str, Any]], None]


class JobFailed(UserError):
    """The job ended for a reason of the system's, or was stopped by someone else; another try may help."""

    passing = True


class JobRefused(UserError):
    """The job ended with one of our own errors: `kind` is its class, and the message is the one that it had there."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def is_jobs(address: str | None) -> bool:
    """Whether an address is a Jobs API (http://host:8265), and not a cluster to join."""
    return address is not None and address.startswith(("http://", "https://"))


class _Client(JobSubmissionClient):
    """Ray's client, which would wait for a silent head for ever."""

    def _do_request(self, *arguments: Any, **given: Any) -> Any:
        return super()._do_request(*arguments, timeout=REQUEST_SECONDS, **given)


class Jobs:
    """The Jobs API of one cluster. Raises ClusterError where there is none, or where the token is missing or wrong."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        if not urlsplit(self.address).hostname:
            raise ClusterError(f"address {address!r}: http://HOST:8265 of a Ray head's dashboard is accepted")
        secret = token()
        headers = {"Authorization": f"Bearer {secret}"} if secret else None
        before = os.environ.get("RAY_API_SERVER_ADDRESS")
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # RAY_ADDRESS would win over the argument
        try:
            self.client = _Client(self.address, headers=headers)
        except AuthenticationError as error:
            why = "does not know this token" if secret else "asks for a token"
            raise ClusterError(f"{address} {why}: RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH must hold that of the cluster") from error
        except (OSError, RuntimeError, ValueError) as error:
            raise ClusterError(f"no Jobs API at {address} ({error}); a Ray head with its dashboard is looked for there") from error
        finally:
            if before is None:
                del os.environ["RAY_API_SERVER_ADDRESS"]
            else:
                os.environ["RAY_API_SERVER_ADDRESS"] = before

    def attempts(self, name: str) -> list[JobDetails]:
        """The jobs NAME-1, NAME-2, ... that the cluster knows, oldest first."""
        found = [job for job in self.client.list_jobs() if (job.submission_id or "").rpartition("-")[0] == name]
        return sorted(found, key=lambda job: int(job.submission_id.rpartition("-")[2]))

    def live(self, name: str) -> JobDetails | None:
        """The attempt that has not ended, if there is one."""
        return next((job for job in self.attempts(name) if not job.status.is_terminal()), None)

    def begin(self, name: str, kind: str, options: BaseModel) -> tuple[str, bool]:
        """(submission id of the job, whether it was there already): the same work is never submitted twice at once."""
        attempts = self.attempts(name)
        if attempts and not attempts[-1].status.is_terminal():
            return str(attempts[-1].submission_id), True
        number = int(attempts[-1].submission_id.rpartition("-")[2]) + 1 if attempts else 1
        job = f"{name}-{number}"
        text = options.model_dump_json(exclude={"address"}, exclude_defaults=True)
        command = f"exec python -P -m pipelines.job {kind} {shlex.quote(text)}"
        try:
            self.client.submit_job(entrypoint=command, submission_id=job, metadata={"deeplab": kind})
        except RuntimeError:
            if self.live(name) is None:  # else another run was faster by a moment, with the same work
                raise
        return job, False

    def stop(self, name: str, patience: float = STOP_SECONDS) -> bool:
        """Stop the attempt that runs, and wait a little for its end; whether there was one."""
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
        """Pass every line of the job to `tell` until it ends; how it ended.

        Raises ConnectionError when the head does not answer for ABSENCE_SECONDS; the job may go on without us.
        """
        lines: queue.Queue[str] = queue.Queue()
        tail = threading.Thread(target=lambda: asyncio.run(self._tail(job, lines)), name=f"tail {job}", daemon=True)
        tail.start()
        heard = time.monotonic()
        while True:
            try:
                details = self.client.get_job_info(job)
                heard = time.monotonic()
            except (OSError, RuntimeError) as error:
                if time.monotonic() - heard > ABSENCE_SECONDS:
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
        """Lines of the job from its first on; after a lost connection from where it was lost."""
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
            except Exception:  # the head is away; `follow` decides for how long
                await asyncio.sleep(POLL_SECONDS)
                with suppress(Exception):
                    if self.client.get_job_status(job).is_terminal():
                        for line in self.client.get_job_logs(job).splitlines()[seen:]:
                            lines.put(line)
                        return


def job_name(kind: str, options: BaseModel) -> str:
    """Of the work, not of who asks for it: whoever comes back to it, after whatever died, finds the job that does it."""
    text = options.model_dump_json(exclude={"address"})
    return f"deeplab-{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def run(
    jobs: Jobs, kind: str, options: BaseModel, started: Callable[[str, bool], None], event: Tell, line: Callable[[str], None]
) -> Any:
    """Do the work as a job and return its result. An interruption of this process stops the job.

    `started` is told the job's id and whether it ran already; `event` each event, `line` every other line. Raises
    JobRefused for our own errors, JobFailed and ConnectionError for the system's.
    """
    name = job_name(kind, options)
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    def tell(text: str) -> None:
        nonlocal result, error
        found = parse(text)
        if found is None:
            if text.strip():
                line(text)
        elif found[EVENT] == "result":
            result = found["result"]
        elif found[EVENT] == "error":
            error = found
        else:
            event(found)

    try:
        job, attached = jobs.begin(name, kind, options)
        started(job, attached)
        details = jobs.follow(job, tell)
    except RuntimeError as trouble:  # what Ray's client makes of an answer that is no 200
        raise JobFailed(f"{jobs.address}: {trouble}") from trouble
    except Exception:
        raise
    except BaseException:
        with suppress(Exception):
            jobs.stop(name)
        raise
    if error is not None and (error["passing"] or error["error"] == UNFORESEEN):
        raise JobFailed(f"job {job}: {error['message']}; its log: {jobs.page(job)}")
    if error is not None:
        raise JobRefused(error["error"], error["message"])
    if details.status == JobStatus.SUCCEEDED and result is not None:
        return result
    what = "was stopped" if details.status == JobStatus.STOPPED else "failed"
    raise JobFailed(f"job {job} {what}: {details.message}; its log: {jobs.page(job)}")


def parse(text: str) -> dict[str, Any] | None:
    """The event in a line of a job; None for any other line."""
    if not text.startswith("{"):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and EVENT in found else None
