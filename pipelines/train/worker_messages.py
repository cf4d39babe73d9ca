"""Messages between the workers of one training and its driver, in one small actor on the driver's node."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import ray

from deeplab.errors import UserError

if TYPE_CHECKING:
    from pipelines.train.ray_train import Event


@ray.remote(num_cpus=0)
class Board:
    """Progress for the driver, and for the workers whether to stop. A restarted worker finds the earlier messages."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.last_heard: float | None = None
        self.error: UserError | None = None
        self.best: dict[str, Any] | None = None
        self.asked_to_stop = False

    def post(self, event: Event) -> None:
        self.events.append(event)

    def fail(self, error: UserError) -> None:
        """The first error counts: later ones are mostly its consequences in other ranks."""
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
        """Whether to stop. Every worker calls it twice a second, which also shows that it is alive."""
        self.last_heard = time.monotonic()
        return self.asked_to_stop

    def news(self) -> tuple[list[Event], float | None, UserError | None]:
        """Events since the last call, seconds since a worker last called (None: never), and the first error."""
        events, self.events = self.events, []
        return events, None if self.last_heard is None else time.monotonic() - self.last_heard, self.error
