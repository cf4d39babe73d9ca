"""Images that kill the process that works on them are found and set aside, and the rest of their block is done.

Before a process works on images it notes them in a file of its node. An attempt at a block that finds such a note of an
earlier attempt knows which images the process had in hand when it died. They are then taken one at a time, so that the next
death names one image, and one that was alone at DEATHS deaths is given up: it becomes an error row. Which node an earlier
attempt ran on is asked of one small actor, once a block.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

DEATHS = 3
WAIT_SECONDS = 30

Note = dict[str, int]  # image -> deaths at which it was alone


class Register:
    """Where each block was begun, in an actor of its own, whose loss costs nothing but what it knew."""

    def __init__(self) -> None:
        self.begun: dict[str, list[str]] = {}

    def begin(self, block: str, node: str) -> list[str]:
        """The nodes of earlier attempts at this block, the latest last."""
        earlier = self.begun.get(block, [])
        self.begun[block] = [*(name for name in earlier if name != node), node]
        return earlier


class Suspects:
    """One attempt at one block: what killed earlier attempts, and a note of what is in hand.

    `deaths`: images that died with a process, each with the deaths at which it was alone. Use as a context: a block that ends,
    or fails with an exception that tells its own story, leaves no note.
    """

    def __init__(self, register: Any, stage: str, block: str) -> None:
        name = f"{stage} {block}"
        self.path = _path(name)
        self.deaths: Note = {}
        with suppress(Exception):  # without the register a death costs a few tries more
            here = ray.get_runtime_context().get_node_id()
            for node in reversed(ray.get(register.begin.remote(name, here), timeout=WAIT_SECONDS)):
                note = _read(str(self.path)) if node == here else _read_on(node, name)
                if note is not None:
                    self.deaths = note
                    break

    def __enter__(self) -> Suspects:
        return self

    def hold(self, uris: list[str]) -> None:
        """Returns when the note is written, as what follows may be the end of this process."""
        staging = self.path.with_suffix(f".{os.getpid()}")
        staging.write_text(json.dumps({"held": uris, "deaths": self.deaths}), encoding="utf-8", errors="surrogatepass")
        os.replace(staging, self.path)

    def __exit__(self, *ended: object) -> None:
        self.path.unlink(missing_ok=True)


def _path(name: str) -> Path:
    """The note's place, in the folder that Ray makes for its session on this node and takes away later."""
    node = ray._private.worker._global_node
    folder = Path(node.get_session_dir_path() if node is not None else tempfile.gettempdir()) / "deeplab"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:32]}.json"


def _read(path: str) -> Note | None:
    """What the note of a dead process says: its deaths, and one more for an image that it held alone."""
    try:
        note = json.loads(Path(path).read_text(encoding="utf-8", errors="surrogatepass"))
    except (OSError, ValueError):
        return None
    deaths: Note = note["deaths"]
    for uri in note["held"]:
        deaths[uri] = deaths.get(uri, 0) + (len(note["held"]) == 1)
    return deaths


def _read_on(node: str, name: str) -> Note | None:
    """The note on another node, if that still lives."""
    with suppress(Exception):
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0)(lambda: _read(str(_path(name))))
        note: Note | None = ray.get(task.options(scheduling_strategy=there).remote(), timeout=WAIT_SECONDS)
        return note
    return None


def given_up(deaths: int) -> str | None:
    """The error of an image that was alone at so many deaths; None while it is worth another try."""
    if deaths < DEATHS:
        return None
    return f"process: it ended {deaths} times while it worked on this image alone (a crash in a decoder, or out of memory)"
