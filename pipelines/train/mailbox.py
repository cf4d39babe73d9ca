"""Where the workers of one training and its driver leave word for each other: one small actor on the driver's node."""

from __future__ import annotations

import time
from typing import Any

import ray

from deeplab.errors import UserError


@ray.remote(num_cpus=0)
class Board:
    """Progress towards the driver; towards the workers, whether to stop. A restarted worker finds what was left here."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.heard: float | None = None
        self.error: UserError | None = None
        self.best: dict[str, Any] | None = None
        self.asked_to_stop = False

    def post(self, event: Any) -> None:
        self.events.append(event)

    def fail(self, error: UserError) -> None:
        """The first error counts: those after it are mostly other ranks' echoes."""
        self.error = self.error or error

    def failed(self) -> bool:
        return self.error is not None

    def finish(self, best: dict[str, Any]) -> None:
        self.best = best

    def outcome(self) -> dict[str, Any] | None:
        return self.best

    def stop(self) -> None:
        self.asked_to_stop = True

    def stopping(self) -> bool:
        """What every worker asks twice a second; so it also says that they are there."""
        self.heard = time.monotonic()
        return self.asked_to_stop

    def news(self) -> tuple[list[Any], float | None, UserError | None]:
        """Events since the last call, seconds since a worker was heard (None: never yet), and the first error."""
        events, self.events = self.events, []
        return events, None if self.heard is None else time.monotonic() - self.heard, self.error
