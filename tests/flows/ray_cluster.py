"""A Ray cluster of several nodes on this host, started apart with `ray start`, that asks for a token."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flows.serving.cleanup import end_processes, marked
from tests.flows.conftest import SECRET
from tests.processes import free_port, wait_for

MARKER, NODE = "DEEPLAB_TEST_CLUSTER", "DEEPLAB_TEST_NODE"


@dataclass(frozen=True)
class RayCluster:
    """Its processes carry `mark` in their environment, by which they are found."""

    gcs: int = field(default_factory=free_port)
    dashboard: int = field(default_factory=free_port)
    mark: str = field(default_factory=lambda: f"{MARKER}={uuid.uuid4().hex}")
    # A job asks its node's folder for the cluster to join and would find the newest of all that share the folder, as those
    # that other tests start meanwhile. Sockets lie in it, whose paths must be short.
    folder: str = field(default_factory=lambda: tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    workers: int = 1

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def drivers(self) -> list[int]:
        """Pids of the jobs' own programs."""
        found = []
        for pid in marked(self.mark):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"pipelines.job_program" in command:
                found.append(pid)
        return found

    def start(self) -> None:
        name, value = self.mark.split("=")
        # Jobs start `python` from the nodes' PATH, as in an image; a pytest of its own has its Ray's variables set.
        kept = {key: text for key, text in os.environ.items() if not key.startswith("RAY_")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {name: value, "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": SECRET, "RAY_USAGE_STATS_ENABLED": "0"}
        own["RAY_worker_niceness"] = "0"  # at Ray's 15 any other load brings its workers to a halt
        head = ["--head", f"--port={self.gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}"]
        head += ["--include-dashboard=true", f"--ray-client-server-port={free_port()}"]
        for number, role in enumerate([head, *[[f"--address=127.0.0.1:{self.gcs}"]] * self.workers]):
            command = [str(Path(sys.executable).with_name("ray")), "start", *role, "--node-ip-address=127.0.0.1", "--num-cpus=1"]
            command.append(f"--temp-dir={self.folder}")
            command += [f"--dashboard-agent-listen-port={free_port()}", f"--object-store-memory={200 << 20}"]
            done = subprocess.run(
                [*command, "--disable-usage-stats"],
                env={**kept, **own, NODE: f"{self.mark}-{number}"},
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
            assert done.returncode == 0, done.stdout + done.stderr

    def kill_node(self, number: int) -> int:
        """SIGKILL for all of a node (0 is the head, then the workers); how many processes it had."""
        return end_processes(f"{NODE}={self.mark}-{number}", grace=0)

    def stop(self) -> None:
        end_processes(self.mark, grace=0)


@contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    """The cluster for the body of a test; nothing of it stays."""
    made = RayCluster()
    try:
        made.start()
        yield made
    finally:
        made.stop()
        wait_for(lambda: not list(marked(made.mark)), "the cluster's processes to end", 60)
        shutil.rmtree(made.folder, ignore_errors=True)
