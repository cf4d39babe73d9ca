"""The truth about a run that was stopped in this process: Cancelled, not Crashed."""

from contextlib import suppress
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled


def was_stopped(error: BaseException | None) -> bool:
    """Whether Ctrl-C or a termination is at the root of an error: the server may have been stopped by the same signal."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt | TerminationSignal):
            return True
        error = error.__cause__ or error.__context__
    return False


def mark_cancelled(run_id: Any) -> Any:
    """Set a run's state to Cancelled whatever it is; returns that state. None: the run never began."""
    state: Any = Cancelled(message="stopped by a person; what was committed stays, and the next run goes on from there")
    if run_id is not None:
        with suppress(httpx.TransportError), get_client(sync_client=True) as client:
            client.set_flow_run_state(run_id, state, force=True)
    return state
