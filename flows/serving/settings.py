"""What the flows keep on the Prefect server: the hourly price and one concurrency limit per results table."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger

from flows.watching.progress import slug

HOURLY_PRICE = "deeplab_hourly_price"
# A table's lock is released this long after its holder died.
LEASE_SECONDS = 60


def hourly_price() -> float | None:
    """The price of the machines per hour from the server's variable; None if it is not set, or 0."""
    from prefect.variables import Variable

    value = Variable.get(HOURLY_PRICE, default=None)
    return float(str(value)) if value else None


def limit_name(results: str) -> str:
    """The concurrency limit that makes runs on one results table (a canonical URI) wait for each other."""
    return f"deeplab-results-{slug(results)}"


@contextmanager
def one_at_a_time(results: str) -> Iterator[None]:
    """Wait until no other run works on this table; no wait unless `deeplab setup-prefect --results` created its limit.

    If the server cannot be reached, the run goes on without: two runs on one table do work twice, and no harm.
    """
    logger, limit = get_run_logger(), None
    try:
        with get_client(sync_client=True) as client:
            limit = client.read_global_concurrency_limit_by_name(limit_name(results))
    except ObjectNotFound:
        pass
    except httpx.TransportError as error:
        logger.warning(f"the Prefect server cannot be reached ({error}); the run does not wait for others on {results}")
    if limit is None:
        yield
        return
    if limit.active and limit.active_slots >= limit.limit:
        logger.info(f"another run works on {results}; this one waits for it")
    with concurrency(limit_name(results), lease_duration=LEASE_SECONDS, strict=False):
        yield
