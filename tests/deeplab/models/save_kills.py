"""Kill -9 at every file operation of `checkpoint.save`, one after the other: python -m tests.deeplab.models.save_kills FOLDER.

The process that saves is forked, so that a hundred of them cost no start of Python; an audit hook sees each open, rename and
removal below FOLDER before it happens. Prints a line of JSON: for each state to begin with, what each kill left there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from deeplab.models import checkpoint
from deeplab.models.checkpoint import CARD, WEIGHTS, WEIGHTS_DIGEST, ModelError
from deeplab.zoo import build

OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def card(name: str) -> dict[str, Any]:
    classes = [{"name": "ground", "colour": [0, 0, 0]}, {"name": "square", "colour": [128, 0, 0]}]
    return {"name": name, "architecture": {"name": "mobilenet-v2-aspp", "options": {}}, "classes": classes}


def save_until(folder: Path, network: Any, kill_at: int) -> bool:
    """Save "new" in a process that dies before its file operation number `kill_at`; whether it was done before that."""
    pid = os.fork()
    if pid == 0:
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event in OPERATIONS and any(str(folder) in str(argument) for argument in arguments[:2]):
                if seen == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        sys.addaudithook(hook)
        checkpoint.save(folder, network, card("new"))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def state(folder: Path, networks: dict[str, Any]) -> str:
    """old or new, whole; or "none" where it is refused. Anything else is what must not be."""
    try:
        model = checkpoint.load(folder)
    except ModelError:
        return "none"
    (own,) = {name for name, network in networks.items() if _same(network, model.network)} or {"neither"}
    return own if own == model.name else f"weights of {own}, card of {model.name}"


def _same(one: Any, other: Any) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(left.float(), right.float(), rtol=1e-2, atol=1e-3) for left, right in pairs)


def begin(folder: Path, kind: str, networks: dict[str, Any]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if kind == "empty":
        return
    checkpoint.save(folder, networks["old"], card("old"))
    if kind == "earlier version":
        text = json.loads((folder / CARD).read_text())
        del text[WEIGHTS_DIGEST]
        (folder / CARD).write_text(json.dumps(text))
    assert (folder / WEIGHTS).exists()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    networks = {name: build("mobilenet-v2-aspp", 2, seed=seed).eval() for seed, name in enumerate(("old", "new"))}
    left: dict[str, list[str]] = {}
    for kind in ("model", "earlier version", "empty"):
        left[kind] = []
        for kill_at in range(100):
            begin(folder, kind, networks)
            done = save_until(folder, networks["new"], kill_at)
            left[kind].append(state(folder, networks))
            checkpoint.save(folder, networks["new"], card("new"))
            assert state(folder, networks) == "new"
            if done:
                break
    print(json.dumps(left))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
