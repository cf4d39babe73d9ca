"""Tasks spread over Ray: a dead process costs its task only, and an error arrives as itself."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from deeplab.devices import DeviceError
from deeplab.errors import UserError
from pipelines.cluster import connection
from pipelines.cluster.connection import ClusterError
from pipelines.cluster.parallel_map import results, spread


def die_once(folder: Path, item: int) -> int:
    if item == 3 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * item


def refuse(_: None, item: int) -> None:
    raise UserError(f"item {item} cannot be used")


def break_down(_: None, item: int) -> None:
    raise RuntimeError("what nobody foresaw")


def test_a_killed_process_costs_its_task_only_and_errors_come_as_themselves(
    tmp_path: Path, running_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sorted(results(spread(die_once, tmp_path, range(6)), 60)) == [(k, 10 * k) for k in range(6)]
    assert (tmp_path / "died").exists()
    with pytest.raises(UserError, match=r"^item 0 cannot be used$"):
        list(results(spread(refuse, None, [0]), 60))
    with pytest.raises(ClusterError, match="RuntimeError: what nobody foresaw"):
        list(results(spread(break_down, None, [0]), 60))
    with pytest.raises(DeviceError, match="device cuda: the cluster has no GPU"):
        spread(refuse, None, [0], "cuda")
    monkeypatch.setattr(connection, "resources", lambda: connection.Resources(0, 0, 0, 0))
    waiting = spread(die_once, tmp_path, [1] * 50)
    with pytest.raises(ClusterError, match="no node with a CPU for 0 s"):
        list(results(waiting, 0.0))
