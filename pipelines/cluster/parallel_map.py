"""One function over many items on Ray: results as they complete, our own errors unwrapped, and a deadline for resources."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray

from deeplab.devices import DeviceError
from deeplab.errors import UserError
from pipelines.cluster import connection
from pipelines.cluster.connection import ClusterError

RETRIES = 5  # of a task whose worker or node died
Shared = TypeVar("Shared")


def spread(
    function: Callable[[Shared, Any], object], shared: Shared, items: Sequence[object], device: str = "cpu", returns: int = 1
) -> list[Any]:
    """References to function(shared, item) for every item: a task each, with a CPU and, if `device` and cluster allow, a GPU.

    `shared` is sent once; an item may be a reference to the function's argument. With `returns` above 1 the function returns so
    many values, and each item has a list of references. Call it inside connection.session. DeviceError for cuda without a GPU.
    """
    resources = connection.resources()
    if device == "cuda" and resources.gpus < 1:
        raise DeviceError("device cuda: the cluster has no GPU; 'cpu' and 'auto' are accepted")
    task = ray.remote(function).options(
        num_cpus=1, num_gpus=1 if resources.takes_gpu(device) else 0, max_retries=RETRIES, num_returns=returns
    )
    shared_reference = ray.put(shared)
    return [task.remote(shared_reference, item) for item in items]


def results(references: Sequence[ray.ObjectRef], timeout: float) -> Iterator[tuple[int, Any]]:
    """(position, result) in the order in which tasks complete.

    A UserError of a task is raised unwrapped. ClusterError if the cluster has had no CPU for `timeout` seconds, or if a task
    failed for a reason of the system's.
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


def _value(reference: ray.ObjectRef) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise ClusterError(f"a task failed: {type(error.cause).__name__}: {error.cause}") from error
    except ray.exceptions.RayError as error:
        raise ClusterError(f"a task failed {RETRIES + 1} times: {type(error).__name__}") from error
