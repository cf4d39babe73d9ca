"""Ray: start it here, or join the cluster that was named. Nothing else calls ray.init."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from deeplab.errors import UserError

CONNECT_SECONDS = 30
OBJECT_STORE_BYTES = 2 << 30
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # in the environment of a job's program


class ClusterError(UserError):
    """The Ray cluster cannot be reached or started; the message says which and what to check."""

    passing = True


@contextmanager
def session(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """Run the body with Ray: a fresh one in this process, or the cluster at `address` ("auto", host:port).

    Without an address a cluster that happens to run on this host is never joined, and no other host reaches what starts.
    A Ray that the caller started is used and left as it is. Ray's SIGTERM handler, which would turn a cancellation into a
    crash, is undone. Raises ClusterError when `address` does not answer within CONNECT_SECONDS.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray starts its workers at niceness 15, where any other load on the machine brings a run to a halt.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray's C++ parts print into the progress bar, for every actor pool a false alarm (ray-project/ray#53727); what
    # goes wrong in earnest arrives as an exception. Set the variable yourself to see them.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if address is None:
            memory = min(OBJECT_STORE_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 5)
            # Ray keeps as many idle processes as there are CPUs; those of other stages must not crowd out the ones that hold
            # the network, which serve the next chunk.
            os.environ.setdefault("RAY_num_workers_soft_limit", str(2 * (cpus or os.cpu_count() or 1) + 2))
            with _loopback():
                ray.init(address="local", num_cpus=cpus, object_store_memory=memory, **quiet)
        else:
            _check(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (RuntimeError, ValueError, ConnectionError, OSError) as error:
        if isinstance(error, ClusterError):
            raise
        raise ClusterError(f"Ray {'at ' + address if address else 'on this machine'} did not start: {error}") from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _loopback() -> Iterator[None]:
    """A Ray that starts in here listens on 127.0.0.1 alone, as its kin on Windows and macOS do; on Linux any host could knock."""
    constants, name = ray._private.ray_constants, ray._private.ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    before = constants.ENABLE_RAY_CLUSTER, os.environ.get(name)
    constants.ENABLE_RAY_CLUSTER, os.environ[name] = False, "0"
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before[0]
        if before[1] is None:
            del os.environ[name]
        else:
            os.environ[name] = before[1]


def _check(address: str) -> None:
    """Fail within the deadline where ray.init would wait for minutes."""
    if address.startswith(("http://", "https://")):
        raise ClusterError(f"{address} is a Jobs API, which the flows take (deeplab run, deeplab serve); here host:port or 'auto'")
    if JOB in os.environ:
        return  # inside a job: Ray names the cluster, and it is there
    if address != "auto" and "://" not in address:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ClusterError(f"address {address!r}: host:port of a Ray head (6379 by default) or 'auto' is accepted")
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS / 3).close()
        except OSError as error:
            raise ClusterError(f"no answer from {address} ({error}); is a Ray head running there, and its port open?") from error
    elif address != "auto":
        raise ClusterError(f"address {address!r}: host:port of a Ray head or 'auto' is accepted")
    probe = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level=50)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", probe, address], capture_output=True, text=True, timeout=CONNECT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{address} did not answer as a Ray cluster within {CONNECT_SECONDS} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ClusterError(f"cannot join {address}: {lines[-1] if lines else f'exit code {done.returncode}'}")


def resources() -> tuple[float, float]:
    """CPUs and GPUs of the cluster."""
    found = ray.cluster_resources()
    return float(found.get("CPU", 0)), float(found.get("GPU", 0))


def memory() -> float:
    """Bytes that the cluster's processes may take, the object store's not among them; without end where nodes do not say."""
    return float(ray.cluster_resources().get("memory", math.inf))


def dashboard() -> str | None:
    """Address of the cluster's dashboard; None where it runs without one, as the Ray that `session` starts here does."""
    url = ray._private.worker._global_node.webui_url if ray.is_initialized() else None
    return f"http://{url}" if url else None
