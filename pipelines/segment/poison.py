"""Images that kill the process that works on them: find them, give them up, and finish the rest of their block.

Before a process works on images, it writes their names to a note on its node. If a later attempt at the block finds the note
of an earlier one, it knows which images that process was working on when it died. It takes these one at a time, so that the
next death points to one image. After DEATHS deaths on its own, an image is given up and becomes an error row. One small actor
knows the nodes of earlier attempts.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

DEATHS = 3
WAIT_SECONDS = 30

Deaths = dict[str, int]  # image -> deaths of a process that worked on it alone


class Note(TypedDict):
    """What a process leaves on its node: the images that it works on, the deaths known before, and its id."""

    uris: list[str]
    deaths: Deaths
    process: int


class Register:
    """The nodes on which each block was started. It is an actor of its own; losing it costs only a few more tries."""

    def __init__(self) -> None:
        self.nodes: dict[str, list[str]] = {}

    def begin(self, block: str, node: str) -> list[str]:
        """The nodes of earlier attempts at this block, the latest last."""
        earlier = self.nodes.get(block, [])
        self.nodes[block] = [*(name for name in earlier if name != node), node]
        return earlier


class NodeRegister:
    """What a Register knows if every attempt is on the node of the first, which takes no actor: on a cluster a death costs a few
    more tries."""

    class begin:
        @staticmethod
        def remote(block: str, node: str) -> ray.ObjectRef:
            return ray.put([node])


class Suspects:
    """One attempt at one block: the images that earlier attempts died with, and the note of this one.

    `deaths`: those images. Use as a context: a block that ends, or fails with an exception, leaves no note.
    """

    def __init__(self, register: ActorHandle | NodeRegister, stage: str, block: str) -> None:
        """`register`: the actor of Register, or a NodeRegister."""
        name = f"{stage} {block}"
        self.path = _path(name)
        self.deaths: Deaths = {}
        with suppress(Exception):  # without the register a death costs a few more tries
            here = ray.get_runtime_context().get_node_id()
            for node in reversed(ray.get(register.begin.remote(name, here), timeout=WAIT_SECONDS)):
                deaths = _read(str(self.path)) if node == here else _read_on(node, name)
                if deaths is not None:
                    self.deaths = deaths
                    break

    def __enter__(self) -> Suspects:
        return self

    def write_note(self, uris: list[str]) -> None:
        """Write the note before work on `uris` begins, which may kill this process."""
        note: Note = {"uris": uris, "deaths": self.deaths, "process": os.getpid()}
        staging = self.path.with_suffix(f".{os.getpid()}")
        staging.write_text(json.dumps(note), encoding="utf-8", errors="surrogatepass")
        os.replace(staging, self.path)

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)


def _path(name: str) -> Path:
    """The path of a note, in the folder of Ray's session on this node, which Ray removes later."""
    node = ray._private.worker._global_node
    folder = Path(node.get_session_dir_path() if node is not None else tempfile.gettempdir()) / "deeplab"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:32]}.json"


def _read(path: str) -> Deaths | None:
    """Deaths by image from the note of a dead process: those that it knew, and its own. None without one.

    A note of a process that lives is that of another block with the same images.
    """
    try:
        note: Note = json.loads(Path(path).read_text(encoding="utf-8", errors="surrogatepass"))
    except (OSError, ValueError):
        return None
    if note["process"] != os.getpid() and _lives(note["process"]):
        return None
    deaths = note["deaths"]
    for uri in note["uris"]:
        deaths[uri] = deaths.get(uri, 0) + (len(note["uris"]) == 1)
    return deaths


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)  # no signal, only the check
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read_on(node: str, name: str) -> Deaths | None:
    """`_read` on another node; None if that node is dead."""
    with suppress(Exception):
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0)(lambda: _read(str(_path(name))))
        deaths: Deaths | None = ray.get(task.options(scheduling_strategy=there).remote(), timeout=WAIT_SECONDS)
        return deaths
    return None


def given_up(deaths: int) -> str | None:
    """The error of an image after `deaths` of processes that worked on it alone; None while it is worth another try."""
    if deaths < DEATHS:
        return None
    return f"process: it ended {deaths} times while it worked on this image alone (a crash in a decoder, or out of memory)"
