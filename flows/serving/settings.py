"""Prefect settings that the flows want, and the names under which the server keeps things of ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger

from flows.watching.progress import slug

HOURLY_PRICE = "deeplab_hourly_price"
# The lock of a table is let go this long after its holder died.
LEASE_SECONDS = 60


def hourly_price() -> float | None:
    """The price of the machines per hour from the server's variable; None where it is not set or 0."""
    from prefect.variables import Variable

    value = Variable.get(HOURLY_PRICE, default=None)
    return float(str(value)) if value else None


def limit_name(results: str) -> str:
    """The concurrency limit that makes runs on one results table (a canonical URI) wait for each other."""
    return f"deeplab-results-{slug(results)}"


@contextmanager
def one_at_a_time(results: str) -> Iterator[None]:
    """The body runs when no other run works on this table, where `deeplab setup-prefect --results` made the limit for it."""
    limit, missing = None, False
    try:
        with get_client(sync_client=True) as client:
            limit = client.read_global_concurrency_limit_by_name(limit_name(results))
    except ObjectNotFound:
        missing = True
    except Exception:  # the server is away for the moment; acquiring waits for it
        pass
    if missing:
        yield
        return
    if limit is not None and limit.active and limit.active_slots >= limit.limit:
        get_run_logger().info(f"another run works on {results}; this one waits for it")
    with concurrency(limit_name(results), lease_duration=LEASE_SECONDS, strict=False):
        yield
