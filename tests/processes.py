"""Processes that tests start: free ports for them, waiting for what they do, and finding them by title."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 600.0  # seconds, on a machine that is busy with other tests


def wait_for(condition: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """Wait until the condition is true and return its value; fail with `what` after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {patience:.0f} s for {what}"
        time.sleep(0.1)
    return value


def free_ports(count: int) -> list[int]:
    """Ports of loopback on which nothing listens, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def free_port() -> int:
    return free_ports(1)[0]


def title(pid: int) -> str:
    """Command line of a process, or the title that it gave itself; empty where it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def in_session(session: int, text: str = "") -> list[int]:
    """Pids in a process session, those whose title contains `text`."""
    pids = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    return [pid for pid in pids if session_of(pid) == session and text in title(pid)]


def session_of(pid: int) -> int | None:
    """None where the process has ended."""
    with suppress(OSError):
        return os.getsid(pid)
    return None
