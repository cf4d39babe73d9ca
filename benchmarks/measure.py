"""Cost of work: seconds and peak memory in a separate process, or the CPU seconds of a whole session of processes."""

from __future__ import annotations

import multiprocessing
import os
import platform
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """`seconds` on the wall, `cpu` in all threads of the process, `memory` at its peak in MB."""

    result: Any
    seconds: float
    cpu: float
    memory: float

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s ({self.cpu:.1f} s of CPU), peak memory {self.memory:.0f} MB"


def machine() -> str:
    """The processor's name and the number of cores, for the first line of a benchmark's output."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor() or platform.machine())
    return f"{name}, {os.cpu_count()} cores"


def peak_memory() -> float:
    """Peak memory of this process in MB; ru_maxrss would also count that of its parent at the start."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def apart(work: Callable[..., Any], *arguments: Any) -> Cost:
    """work(*arguments) in a fresh process, imports included. Its exception is raised here, too."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(sender, work, arguments))
    process.start()
    sender.close()
    try:
        cost: Cost = receiver.recv()
    except EOFError:
        raise SystemExit(f"{work.__name__} failed; see above") from None
    process.join()
    return cost


def _measured(sender: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    start, before = time.perf_counter(), time.process_time()
    result = work(*arguments)
    sender.send(Cost(result, time.perf_counter() - start, time.process_time() - before, peak_memory()))


class SessionTime:
    """CPU seconds of all processes of this process's session by kind, those that have ended included.

    A kind of Ray's worker is what its process is titled: the actor, or the task that is at work in it. Looks every `every`
    seconds, so what a process did in its last moment is missed; a worker's last moment is idle.
    """

    KINDS = ("gcs_server", "raylet", "ray::")
    IDLE = "ray::IDLE"

    def __init__(self, every: float = 0.1) -> None:
        self.every, self.session = every, os.getsid(0)
        self.processes: dict[tuple[int, str], tuple[str, float]] = {}  # by number and start: latest kind, seconds so far
        self.total: defaultdict[str, float] = defaultdict(float)
        self.lock, self.over = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.over.wait(self.every):
            self._look()

    def _look(self) -> None:
        with self.lock:
            for folder in Path("/proc").iterdir():
                if folder.name.isdigit():
                    with suppress(OSError, ValueError):  # it has just ended
                        fields = (folder / "stat").read_text().rpartition(")")[2].split()
                        if int(fields[3]) == self.session:
                            seconds = (int(fields[11]) + int(fields[12])) / TICKS
                            key = int(folder.name), fields[19]
                            known, before = self.processes.get(key, ("others", 0.0))
                            kind = self._kind(folder)
                            kind = known if not kind or (kind == self.IDLE and known != "others") else kind
                            self.total[kind] += seconds - before
                            self.processes[key] = kind, seconds

    def _kind(self, folder: Path) -> str:
        """Empty for a process that has ended and waits for its parent."""
        if int(folder.name) == os.getpid():
            return "driver"
        title = (folder / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
        for kind in self.KINDS:
            if kind in title:
                return title.partition(".")[0] if kind == "ray::" else kind  # an actor, whichever of its methods is at work
        return "others" if title else ""

    def now(self) -> dict[str, float]:
        """CPU seconds so far by kind of process."""
        self._look()
        return dict(self.total)

    def stop(self) -> None:
        self.over.set()
        self.thread.join()
