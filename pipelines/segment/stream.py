"""A plan on its way through a cluster: one Ray Data execution, whose finished blocks the sink takes as they come."""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata

from pipelines.segment.parallelism import Parallelism
from pipelines.segment.plan import Plan, packed
from pipelines.segment.poison import Register
from pipelines.segment.sink import Sink
from pipelines.segment.stages import Score, Task, refine, whole

# Ray Data keeps 11 to 20 KB of the driver's memory and takes 3 to 8 ms of its CPU for each block (`benchmarks/stream.py blocks`).
# A larger plan is several executions, one after the other, of up to 2.5 million images on CPUs and 5 million with GPUs.
EXECUTION_BLOCKS = 20_000
POOL = 1024  # GPU actors at the most; Ray starts as many as there are GPUs
TICK_SECONDS = 0.5
STOP_SECONDS = 5.0  # that an execution may take to end


@dataclass(frozen=True)
class Ended:
    """How a stream ended: seconds it took, and whether it was cut short because the caller asked for it."""

    seconds: float
    cut: bool


class Blocks(Datasource):
    """Blocks of a plan as Ray Data reads them: each travels inside its own read task, as `plan.packed` made it."""

    def __init__(self, blocks: Iterable[pa.Table]) -> None:
        self.tasks = [self._task(block) for block in blocks]

    @staticmethod
    def _task(block: pa.Table) -> ReadTask:
        row = packed(block)
        about = BlockMetadata(num_rows=1, size_bytes=row.nbytes, input_files=None, exec_stats=None)
        return ReadTask(functools.partial(list, [row]), about)  # no closure: those take a millisecond to pickle

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None) -> list[ReadTask]:
        return self.tasks


def run(
    plan: Plan, model: Any, task: Task, parallelism: Parallelism, sink: Sink, watch: Callable[[], bool], after: ExitStack
) -> Ended:
    """Send the whole plan through the cluster and into `sink`.

    model: object reference to what `checkpoint.read` returned. watch: asked twice a second whether to go on. after: closed when
    the sink is, takes down what is left of the executions. Raises what a block or the sink failed with; blocks that are finished
    have been taken by then.
    """
    began = time.monotonic()
    blocks = plan.blocks(parallelism.slots, parallelism.block_images, parallelism.block_bytes)
    # Compressed one by one: uncompressed, the names of one execution (5 million images) have half a gigabyte.
    while (source := Blocks(itertools.islice(blocks, EXECUTION_BLOCKS))).tasks:
        if not _execute(_dataset(source, model, task, parallelism), sink, watch, after):
            return Ended(time.monotonic() - began, cut=True)
    return Ended(time.monotonic() - began, cut=False)


def _dataset(source: Blocks, model: Any, task: Task, parallelism: Parallelism) -> Dataset:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # A task that is done again after its node died must give the blocks that it gave before: one, whatever its size.
    context.target_max_block_size = None
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a block of large images takes longer than Ray's half an hour
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors arrive as exceptions
    register = ray.remote(num_cpus=0)(Register).remote()
    each: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "num_cpus": parallelism.cpus}
    if parallelism.scorers is None:
        # Reading has no work of its own, and becomes one task with what follows when it asks for the same.
        asks = {"num_cpus": parallelism.cpus, "memory": parallelism.memory or None}
        dataset = ray.data.read_datasource(source, override_num_blocks=len(source.tasks), **asks)
        return dataset.map_batches(whole, fn_args=(model, task, register), **each | asks)
    # They ask for no CPU, which scorers and refiners may have taken, so nothing else keeps Ray from a process for each at once.
    reads: dict[str, Any] = {"num_cpus": 0, "concurrency": parallelism.scorers + 1}
    dataset = ray.data.read_datasource(source, override_num_blocks=len(source.tasks), **reads)
    pool = ActorPoolStrategy(
        min_size=min(parallelism.scorers, len(source.tasks)),  # one that waits for a while keeps its GPU and the network on it
        max_size=POOL,
        max_concurrent_calls_per_actor=Score.CALLS,
        enable_true_multi_threading=True,
    )
    arguments: dict[str, Any] = {"fn_constructor_args": (model, task, register), "compute": pool, "num_gpus": 1}
    arguments |= {"num_cpus": parallelism.scorer_cpus, "batch_size": 1}  # a packed block; with GPUs Ray Data wants a number
    dataset = dataset.map_batches(Score, **each | arguments)
    return dataset.map_batches(refine, fn_args=(task, register), **each)


def _execute(dataset: Dataset, sink: Sink, watch: Callable[[], bool], after: ExitStack) -> bool:
    """One execution to its end, or until `watch` says no; whether it reached its end.

    A thread takes the blocks, so that a signal finds this one idle: what is finished is committed before Ray is taken down.
    """
    ended = threading.Event()
    reasons: list[BaseException] = []

    def pump() -> None:
        try:
            for bundle in bundles:
                sink.take(bundle.blocks)
        except BaseException as error:
            reasons.append(error)
        finally:
            ended.set()

    # As iter_internal_ref_bundles does it, which keeps the executor to itself; one that still runs when Ray is taken down can end
    # this process.
    executor = dataset._create_executor()
    bundles = dataset._build_bundle_iterator(executor)
    thread = threading.Thread(target=pump, name="stream", daemon=True)
    after.callback(thread.join, STOP_SECONDS)
    after.callback(executor.shutdown, force=True)
    thread.start()
    while not ended.wait(TICK_SECONDS):
        sink.check()
        if not watch():
            return False
    if reasons:
        raise reasons[0]
    return True
