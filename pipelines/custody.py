"""Images that kill the process that works on them are found and set aside, and the rest of their block is done.

Before a process works on images it has them entered here as held. An attempt at a block that begins while images of the
last one are still held shows that its process died with them in hand. They are then taken one at a time, so that the next
death names one image, and one that was held alone at DEATHS deaths is given up: it becomes an error row.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray

DEATHS = 3
WAIT_SECONDS = 30


class Register:
    """The entries of a chunk, in an actor of its own, whose loss costs nothing but what it knew."""

    def __init__(self) -> None:
        self.held: dict[str, list[str]] = {}
        self.suspects: dict[str, dict[str, int]] = {}

    def begin(self, block: str) -> dict[str, int]:
        """Images of this block that died with a process, each with the deaths at which it was held alone."""
        held = self.held.pop(block, [])
        if held:
            deaths = self.suspects.setdefault(block, {})
            for uri in held:
                deaths[uri] = deaths.get(uri, 0) + (len(held) == 1)
        return dict(self.suspects.get(block, {}))

    def hold(self, block: str, uris: list[str]) -> None:
        self.held[block] = uris

    def end(self, block: str) -> None:
        self.held.pop(block, None)
        self.suspects.pop(block, None)


class Custody:
    """What a stage sees of the register, for one block after the other; a register that is gone holds nothing up."""

    def __init__(self, register: Any, stage: str) -> None:
        self.register, self.stage = register, stage

    def begin(self, block: str) -> dict[str, int]:
        return self._ask("begin", block) or {}

    def hold(self, block: str, uris: list[str]) -> None:
        """Returns when the entry is made, as what follows may be the end of this process."""
        self._ask("hold", block, uris)

    def end(self, block: str) -> None:
        """The block is done, or failed with an exception that tells its own story."""
        self._ask("end", block)

    def _ask(self, what: str, block: str, *arguments: Any) -> Any:
        with suppress(Exception):
            return ray.get(getattr(self.register, what).remote(f"{self.stage} {block}", *arguments), timeout=WAIT_SECONDS)
        return None


def given_up(deaths: int) -> str | None:
    """The error of an image that was held alone at so many deaths; None while it is worth another try."""
    if deaths < DEATHS:
        return None
    return f"process: it ended {deaths} times while it worked on this image alone (a crash in a decoder, or out of memory)"
