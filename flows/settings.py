"""Prefect settings that the flows want, and the names under which the server keeps things of ours."""

from flows.progress import slug

HOURLY_PRICE = "deeplab_hourly_price"


def hourly_price() -> float | None:
    """The price of the machines per hour from the server's variable; None where it is not set or 0."""
    from prefect.variables import Variable

    value = Variable.get(HOURLY_PRICE, default=None)
    return float(str(value)) if value else None


def limit_name(results: str) -> str:
    """The concurrency limit that makes runs on one results table (a canonical URI) wait for each other."""
    return f"deeplab-results-{slug(results)}"
