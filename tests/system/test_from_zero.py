"""A cluster whose nodes an autoscaler starts when work asks for them: a run on none of them has it start the first."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import in_session, wait_for
from tests.system.conftest import NODES

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]
PORT = 6379  # where the nodes that Ray's pretend cloud starts look for their head
EMPTY = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
CLOUD = {
    "cluster_name": "from-zero",
    "max_workers": 1,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 1, "object_store_memory": 200 << 20},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 1,
        },
    },
    "head_node_type": "head",
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 5,
    **{f"{name}_commands": [] for name in EMPTY},
}


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def empty_cluster(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a head that has no CPU, with an autoscaler that may start one node."""
    if listens(PORT):
        pytest.skip(f"port {PORT} is taken; end what listens there")
    config, place = tmp_path / "cloud.json", Path("/tmp") / f"ray-zero-{os.getpid()}"  # a short path: Ray's sockets lie in it
    config.write_text(json.dumps(CLOUD))
    more = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_AUTH_MODE": "disabled", **NODES}
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=0", f"--port={PORT}"]
    command += [f"--autoscaling-config={config}", f"--temp-dir={place}", "--include-dashboard=false"]
    log = (tmp_path / "head.log").open("w")
    head = subprocess.Popen(command, env={**os.environ, **more}, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: listens(PORT), "the head", 120)
        yield f"127.0.0.1:{PORT}"
    finally:
        for pid in in_session(head.pid):
            os.kill(pid, signal.SIGKILL)
        head.wait()


def test_a_run_on_a_cluster_without_a_node_has_one_started(
    empty_cluster: str, archive: Path, model: Path, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    command = ["segment", str(archive), str(tmp_path / "results"), "--model", str(model), "--address", empty_cluster, "--json"]
    hasty = start(*command, "--start-timeout", "0.1")
    assert "the cluster has had no node with a CPU for 0.1 s" in hasty.communicate(timeout=120)[1]
    assert hasty.returncode == 1
    process = start(*command)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert (summary["images"], summary["errors"]) == (48, 0)
    assert sum(summary["images_by_node"].values()) == 48
