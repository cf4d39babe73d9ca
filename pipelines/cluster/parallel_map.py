"""The same function over many items on Ray: results as they come, our own errors as themselves, and a deadline for resources."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from deeplab.devices import DeviceError
from deeplab.errors import UserError
from pipelines.cluster import connection
from pipelines.cluster.connection import ClusterError

RETRIES = 5  # of a task whose worker or node died


def spread(function: Callable[..., Any], shared: Any, items: Sequence[Any], device: str = "cpu", returns: int = 1) -> list[Any]:
    """References to function(shared, item) of every item: a task each, with a CPU and, if `device` and cluster allow, a GPU.

    `shared` travels once; items may be references themselves. With `returns` above 1 the function returns so many
    values, and each item has a list of references. Call it inside connection.session. DeviceError for cuda without a GPU.
    """
    there = connection.resources()
    if device == "cuda" and there.gpus < 1:
        raise DeviceError("device cuda: the cluster has no GPU; 'cpu' and 'auto' are accepted")
    task = ray.remote(function).options(
        num_cpus=1, num_gpus=1 if there.takes_gpu(device) else 0, max_retries=RETRIES, num_returns=returns
    )
    where = ray.put(shared)
    return [task.remote(where, item) for item in items]


def results(references: Sequence[Any], timeout: float) -> Iterator[tuple[int, Any]]:
    """(position, result) in the order in which tasks end.

    A UserError that a task raised is raised as itself. ClusterError when the cluster has had nothing to run a task on for
    `timeout` seconds, or a task failed for a reason of the system's.
    """
    positions = {reference: index for index, reference in enumerate(references)}
    pending, idle_since = list(references), time.monotonic()
    try:
        while pending:
            ended, pending = ray.wait(pending, num_returns=min(len(pending), 100), timeout=0.5)
            if connection.resources().cpus >= 1:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > timeout:
                raise ClusterError(connection.no_cpu(timeout))
            for reference in ended:
                yield positions[reference], _value(reference)
    finally:
        for reference in pending:
            ray.cancel(reference)


def _value(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise ClusterError(f"a task failed: {type(error.cause).__name__}: {error.cause}") from error
    except ray.exceptions.RayError as error:
        raise ClusterError(f"a task failed {RETRIES + 1} times: {type(error).__name__}") from error
