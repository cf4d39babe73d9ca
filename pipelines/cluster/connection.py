"""Ray: start it here, or join the cluster that was named. Nothing else calls ray.init."""

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
ROOT = Path(__file__).resolve().parents[2]  # where this process found our packages
# Joins a cluster in a process that can be ended; its last line is what went wrong.
PROBE = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=50)
except BaseException as error:
    sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))
"""
NO_TOKEN = ("InvalidAuthToken", "AuthenticationError")


class ClusterError(UserError):
    """The Ray cluster cannot be reached or started; the message says which and what to check."""

    passing = True


@contextmanager
def session(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """Run the body with Ray: a fresh one in this process, or the cluster at `address` ("auto", host:port).

    Without an address a cluster that happens to run on this host is never joined, and no other host reaches what starts.
    A Ray that the caller started is used and left as it is. Ray's SIGTERM handler, which would turn a cancellation into a
    crash, is undone. Workers import our packages from where this process did, whatever lies in the current folder.
    Raises ClusterError when `address` does not answer within CONNECT_SECONDS.
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
            # the network, which serve the next block.
            os.environ.setdefault("RAY_num_workers_soft_limit", str(2 * (cpus or os.cpu_count() or 1) + 2))
            # Ray would write a token for itself into the home folder, which a service's user may not have.
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
    code, last = _probe(address)
    if any(sign in last for sign in NO_TOKEN) and "RAY_AUTH_MODE" not in os.environ and token() is not None:
        # Ray joins without its token unless the mode says so, which it read when it was imported. A driver in that mode answers
        # nobody who has none, so a cluster that asks for none must be joined in the other.
        os.environ["RAY_AUTH_MODE"] = "token"
        ray._raylet.Config.initialize("")
        code, last = _probe(address)
    if any(sign in last for sign in NO_TOKEN):
        known = "does not know the token that is set here" if token() else "asks for a token, and none is set here"
        remedy = (
            "RAY_AUTH_TOKEN, or a file that RAY_AUTH_TOKEN_PATH names, must hold the cluster's (on its head: ray get-auth-token)"
        )
        raise ClusterError(f"{address} {known} ({NO_TOKEN[0]}): {remedy}")
    if code is None:
        raise ClusterError(f"{address} did not answer as a Ray cluster within {CONNECT_SECONDS} s")
    if code:
        advice = "; both must be the same" if "Version mismatch" in last else ""
        raise ClusterError(f"cannot join {address}: {last or f'exit code {code}'}{advice}")


def _probe(address: str) -> tuple[int | None, str]:
    """Join and leave in another process: its exit code (None: it had to be ended) and the last line of its stderr."""
    command = [sys.executable, "-P", "-c", PROBE, address]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        deadline = threading.Timer(CONNECT_SECONDS, process.kill)
        deadline.start()
        try:
            last = ""
            for line in process.stderr or ():
                last = line.strip() or last
                if NO_TOKEN[0] in line:  # Ray would try again for 20 s
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

    Ray puts the driver's current folder before all others in its workers' path, and a folder pipelines/ in it, or another
    checkout, would run in them instead. What it calls a client's job has no such folder. Installed packages need no entry;
    one would put them before Python's own library.
    """
    installed = str(ROOT) in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    return JobConfig(_client_job=True, _py_driver_sys_path=[] if installed else [str(ROOT)])


@dataclass(frozen=True)
class Resources:
    """What the nodes of a cluster have for tasks: CPUs, GPUs, and bytes of memory, the object store's not among them.

    `node_memory`: of the node that has the most; 0 where a node does not say.
    """

    cpus: float
    gpus: float
    memory: float
    node_memory: float

    def takes_gpu(self, device: str) -> bool:
        """Whether a process that may compute on `device` (auto, cpu or cuda) is to have a GPU."""
        return device == "cuda" or (device == "auto" and self.gpus >= 1)


def resources() -> Resources:
    """Of the nodes that live now."""
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
    return f"no node with a CPU for {timeout:g} s: the cluster has none to give; add nodes, start again"


def dashboard() -> str | None:
    """Address of the cluster's dashboard; None where it runs without one, as the Ray that `session` starts here does."""
    url = ray._private.worker._global_node.webui_url if ray.is_initialized() else None
    return f"http://{url}" if url else None
