"""The state of a run that was stopped in this process: Cancelled, not Crashed."""

from contextlib import suppress
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled


def was_stopped(error: BaseException | None) -> bool:
    """Whether Ctrl-C or a termination caused an error, perhaps through others: the same signal may have stopped the server."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt | TerminationSignal):
            return True
        error = error.__cause__ or error.__context__
    return False


def mark_cancelled(run_id: UUID | None) -> State[Any]:
    """Set a run's state to Cancelled, whatever it was; returns that state. `run_id` is None if the run never began."""
    state: State[Any] = Cancelled(message="stopped by a person; committed rows are kept, and the next run continues")
    if run_id is not None:
        with suppress(httpx.TransportError), get_client(sync_client=True) as client:
            client.set_flow_run_state(run_id, state, force=True)
    return state
