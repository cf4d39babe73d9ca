"""What a run reaches: the archive, the place of the results, and Ray, here or as a cluster."""

from __future__ import annotations

import os
import socket
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from deeplab.errors import UserError, one_line
from pipelines.archive import inventory
from pipelines.doctor.finding import Finding
from pipelines.storage import filesystems, s3
from pipelines.storage.storage_errors import StorageError

CONNECT_SECONDS = 5.0
KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or a role; AWS_REGION; AWS_ENDPOINT_URL for a store other than AWS"


def archive(place: str) -> Iterator[Finding]:
    """Whether an archive of any kind can be listed, up to its first image."""
    name = "archive"
    if filesystems.is_s3(place) and (problem := _unreachable()):
        yield Finding(name, "failed", f"{place}: {problem}", "nothing can be read there", f"check {KEYS}")
        return
    remote = filesystems.is_s3(place)
    try:
        with tempfile.TemporaryDirectory(prefix="deeplab-doctor-") as folder:
            inventory.take(place, Path(folder) / "inventory.parquet", limit=1)
    except (UserError, OSError) as error:
        remedy = f"check {KEYS}" if remote else "check the path"
        yield Finding(name, "failed", one_line(error, 400), "there is nothing to segment", remedy)
        return
    signed = "" if not remote else ", with credentials" if s3.signed() else ", without credentials, as for a public bucket"
    yield Finding(name, "ok", f"{place} holds images{signed}")


def results(place: str) -> Iterator[Finding]:
    """Whether a table can be written: on S3 by a probe that conditional PUT must protect, locally by a file."""
    name = "results"
    if not filesystems.is_s3(place):
        path = filesystems.local_path(place).expanduser().absolute()
        above = next(parent for parent in (path, *path.parents) if parent.exists())
        try:
            with tempfile.TemporaryFile(dir=above):
                yield Finding(name, "ok", f"{place} can be written")
        except OSError as error:
            yield Finding(
                name, "failed", f"{above}: {error.strerror}", "a table cannot be written there", "choose a folder of yours"
            )
        return
    if problem := _unreachable():
        yield Finding(name, "failed", f"{place}: {problem}", "nothing can be written there", f"check {KEYS}")
        return
    try:
        s3.require_conditional_put(place, replacing=True)
    except StorageError as error:
        remedy = (
            "use one of the stores that it names" if "conditional PUT" in str(error) else f"allow PutObject there; check {KEYS}"
        )
        yield Finding(name, "failed", one_line(error, 400), "a table cannot be committed there safely", remedy)
        return
    yield Finding(name, "ok", f"{place} can be written, and the store keeps commits apart (conditional PUT)")


def _unreachable() -> str | None:
    """Why no connection to the store is possible, in CONNECT_SECONDS; its client would try for minutes. Not through a proxy."""
    if any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")):
        return None
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    url = urlsplit(s3.endpoint() or f"https://s3.{region + '.' if region else ''}amazonaws.com")
    if not url.hostname:
        return f"AWS_ENDPOINT_URL {s3.endpoint()!r} is no URL; http://host:port is accepted"
    try:
        port = url.port or (80 if url.scheme == "http" else 443)
        socket.create_connection((url.hostname, port), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        return f"no answer from {url.hostname} ({error}); is the store running, and AWS_ENDPOINT_URL right?"
    return None


def ray(address: str | None) -> Iterator[Finding]:
    """Whether Ray starts here, or the cluster at `address` can be joined or takes jobs; whether it asks for a token."""
    from pipelines.cluster import connection, ray_jobs

    name = "Ray cluster" if address else "Ray"
    try:
        if ray_jobs.is_jobs(address):
            running = [job for job in ray_jobs.Jobs(str(address)).client.list_jobs() if not job.status.is_terminal()]
            yield Finding(name, "ok", f"{address} takes jobs; {len(running)} are running")
            yield _token(str(address), _refuses_strangers(str(address)))
            return
        with connection.session(address):
            there = connection.resources()
            value = f"{there.cpus:g} CPUs and {there.gpus:g} GPUs"
            if address is None:
                yield Finding(name, "ok", f"starts here, with {value}")
                return
            if there.cpus < 1:
                yield Finding(name, "note", f"{address} has no node with a CPU now", "a run waits until one joins",
                              "add nodes, or let the autoscaler do so (--start-timeout)")  # fmt: skip
            else:
                yield Finding(name, "ok", f"{address} can be joined: {value}")
            yield _token(address, os.environ.get("RAY_AUTH_MODE", "").lower() == "token")  # as joining found out
    except UserError as error:
        remedy = "mend what it says; on the head, `ray status` tells whether the cluster is well" if address else ""
        yield Finding(name, "failed", one_line(error, 400), "no work can run there", remedy)


def _token(address: str, required: bool) -> Finding:
    """Whether a cluster that took us asks for its token; the token itself is never shown."""
    from pipelines.cluster import connection

    if required:
        return Finding("Ray token", "ok", "the cluster asks for one, and accepts the one that is set here")
    unused = "; the one that is set here is not used" if connection.token() else ""
    meaning = f"whoever reaches {address} can run code on it"
    remedy = "keep the port inside a network of yours, or start the nodes with RAY_AUTH_MODE=token"
    return Finding("Ray token", "note", f"the cluster asks for none{unused}", meaning, remedy)


def _refuses_strangers(address: str) -> bool:
    """Whether a Jobs API, which answered us, answers 401 or 403 to a request without a token."""
    try:
        urllib.request.urlopen(f"{address.rstrip('/')}/api/jobs/", timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    return False
