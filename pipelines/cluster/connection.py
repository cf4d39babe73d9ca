"""Ray: start it here or join a cluster. Only this module calls ray.init."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.job_config import JobConfig

from deeplab.errors import UserError

CONNECT_SECONDS = 30
OBJECT_STORE_BYTES = 2 << 30
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # in the environment of a job's program
ROOT = Path(__file__).resolve().parents[2]  # from where this process imports our packages
# Joins a cluster in a process that can be killed; its last line is the error.
PROBE = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=50)
except BaseException as error:
    sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))
"""
NO_TOKEN = ("InvalidAuthToken", "AuthenticationError")


class ClusterError(UserError):
    """The Ray cluster cannot be reached or started; the message says which one and what to check."""

    passing = True


@contextmanager
def session(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """Run the body with Ray: a new local one, or the cluster at `address` ("auto", host:port).

    Without an address, a cluster that happens to run on this host is not joined, and other hosts cannot reach the local one. If
    Ray is already initialized, it is used and left running. Ray's SIGTERM handler, which would turn a cancellation into a crash,
    is removed. Workers import our packages from where this process does, whatever the current folder holds.
    Raises ClusterError if `address` does not answer within CONNECT_SECONDS.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray starts its workers at niceness 15, at which any other load on the machine stops a run.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray's C++ code logs into the progress bar, with a false alarm for every actor pool (ray-project/ray#53727). Real errors arrive
    # as exceptions. Set the variable yourself to see the logs.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if address is None:
            memory = min(OBJECT_STORE_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 5)
            # Ray keeps as many idle processes as there are CPUs. With more, processes of other stages do not displace those that
            # hold the network.
            os.environ.setdefault("RAY_num_workers_soft_limit", str(2 * (cpus or os.cpu_count() or 1) + 2))
            # Otherwise Ray writes a token into the home folder, which a service's user may not have.
            if token() is None:
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            with _loopback():
                ray.init(address="local", num_cpus=cpus, object_store_memory=memory, job_config=_job_config(), **quiet)
        else:
            _check(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, job_config=_job_config())
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
    """A Ray that starts in the body listens on 127.0.0.1 only, as on Windows and macOS; on Linux its default is all interfaces."""
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
    """ClusterError within CONNECT_SECONDS if a cluster cannot be joined; ray.init would wait for minutes."""
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"{address} is a Jobs API, which only flows accept (deeplab run, deeplab serve); here host:port or 'auto' is accepted"
        )
    if JOB in os.environ:
        return  # inside a job, whose cluster exists
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
    code, last = _probe(address)
    if any(sign in last for sign in NO_TOKEN) and "RAY_AUTH_MODE" not in os.environ and token() is not None:
        # Ray uses its token only in token mode, which it read when it was imported. A driver in token mode does not answer peers
        # without one, so the mode is set only for a cluster that requires it.
        os.environ["RAY_AUTH_MODE"] = "token"
        ray._raylet.Config.initialize("")
        code, last = _probe(address)
    if any(sign in last for sign in NO_TOKEN):
        refusal = "does not accept the token that is set here" if token() else "requires a token, and none is set here"
        remedy = "RAY_AUTH_TOKEN, or a file named by RAY_AUTH_TOKEN_PATH, must hold the cluster's (on its head: ray get-auth-token)"
        raise ClusterError(f"{address} {refusal} ({NO_TOKEN[0]}): {remedy}")
    if code is None:
        raise ClusterError(f"{address} did not answer as a Ray cluster within {CONNECT_SECONDS} s")
    if code:
        advice = "; both must be the same" if "Version mismatch" in last else ""
        raise ClusterError(f"cannot join {address}: {last or f'exit code {code}'}{advice}")


def _probe(address: str) -> tuple[int | None, str]:
    """Join and leave in another process: its exit code (None: it had to be killed) and the last line of its stderr."""
    command = [sys.executable, "-P", "-c", PROBE, address]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        deadline = threading.Timer(CONNECT_SECONDS, process.kill)
        deadline.start()
        try:
            last = ""
            for line in process.stderr or ():
                last = line.strip() or last
                if NO_TOKEN[0] in line:  # Ray would retry for 20 s
                    process.kill()
                    break
            code = process.wait()
        finally:
            deadline.cancel()
    return (None if code < 0 else code), last


def token() -> str | None:
    """Ray's authentication token, from where Ray looks for it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    if value := os.environ.get("RAY_AUTH_TOKEN"):
        return value.strip()
    place = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    try:
        return Path(place).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _job_config() -> JobConfig:
    """Workers import our packages from ROOT.

    Ray puts the driver's current folder first in the path of its workers, which would then run a folder pipelines/ there, or
    another checkout. A job that is marked as a client's does not get that entry. Installed packages need no entry; it would put
    them before Python's own library.
    """
    installed = str(ROOT) in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    return JobConfig(_client_job=True, _py_driver_sys_path=[] if installed else [str(ROOT)])


@dataclass(frozen=True)
class Resources:
    """The resources of a cluster for tasks: CPUs, GPUs and bytes of memory, without the object store.

    `node_memory`: of the largest node; 0 if a node reports none.
    """

    cpus: float
    gpus: float
    memory: float
    node_memory: float

    def takes_gpu(self, device: str) -> bool:
        """Whether a process with the option `device` (auto, cpu or cuda) gets a GPU."""
        return device == "cuda" or (device == "auto" and self.gpus >= 1)


def resources() -> Resources:
    """The resources of the nodes that are alive."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    memory = [float(node.get("memory", 0)) for node in nodes if node.get("CPU")] or [0.0]
    cpus, gpus = (sum(float(node.get(kind, 0)) for node in nodes) for kind in ("CPU", "GPU"))
    return Resources(cpus, gpus, sum(memory), max(memory) if all(memory) else 0.0)


def wake(timeout: float) -> None:
    """Have a cluster that has scaled to zero start a node: Ray Data asks an autoscaler for more of what there is, not for a first.

    Returns when some node has a CPU or GPU. Raises ClusterError after `timeout` seconds without one.
    """
    there = resources()
    if there.cpus >= 1 or there.gpus >= 1:
        return
    ask = ray.remote(num_cpus=1, max_retries=-1)(lambda: None).remote()
    if not ray.wait([ask], timeout=timeout)[0]:
        ray.cancel(ask)
        raise ClusterError(no_cpu(timeout))


def no_cpu(timeout: float) -> str:
    return f"the cluster has had no node with a CPU for {timeout:g} s; add nodes and start again"


def dashboard() -> str | None:
    """Address of the cluster's dashboard; None if it has none, like the Ray that `session` starts here."""
    url = ray._private.worker._global_node.webui_url if ray.is_initialized() else None
    return f"http://{url}" if url else None
