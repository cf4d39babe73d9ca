"""The stream: one Ray Data execution that sends a plan through a cluster and its finished blocks into the sink."""

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
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, DataContext, Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata

from pipelines.segment.parallelism import Parallelism
from pipelines.segment.plan import Plan, packed
from pipelines.segment.poison import Register
from pipelines.segment.sink import Sink
from pipelines.segment.stages import Score, Task, refine, whole

# A block costs Ray Data 11 to 20 KB of the driver's memory and 3 to 8 ms of its CPU (`benchmarks/stream.py blocks`). A larger plan
# becomes several executions, one after the other, of up to 2.5 million images on CPUs and 5 million with GPUs.
EXECUTION_BLOCKS = 20_000
POOL = 1024  # most GPU actors; Ray starts as many as there are GPUs
TICK_SECONDS = 0.5
STOP_SECONDS = 5.0  # for an execution to end


@dataclass(frozen=True)
class StreamEnd:
    """How a stream ended: its seconds, and whether the caller cut it short."""

    seconds: float
    cut: bool


class Blocks(Datasource):
    """The blocks of a plan as a Ray Data source: each travels inside its own read task, packed by `plan.packed`."""

    def __init__(self, blocks: Iterable[pa.Table]) -> None:
        self.tasks = [self._task(block) for block in blocks]

    @staticmethod
    def _task(block: pa.Table) -> ReadTask:
        row = packed(block)
        metadata = BlockMetadata(num_rows=1, size_bytes=row.nbytes, input_files=None, exec_stats=None)
        return ReadTask(functools.partial(list, [row]), metadata)  # a closure would take a millisecond to pickle

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        return self.tasks


def run(
    plan: Plan, model: ray.ObjectRef, task: Task, parallelism: Parallelism, sink: Sink, watch: Callable[[], bool], after: ExitStack
) -> StreamEnd:
    """Send the whole plan through the cluster and into `sink`.

    model: reference to the result of `checkpoint.read`. watch: called twice a second; False ends the stream. after: the caller
    closes it after the sink, which ends executions that still run. Raises the error of a failed block or of the sink, after the
    sink has taken all finished blocks.
    """
    began = time.monotonic()
    blocks = plan.blocks(parallelism.slots, parallelism.block_images, parallelism.block_bytes)
    # Each block is compressed: uncompressed, the names of one execution (5 million images) take half a gigabyte.
    while (source := Blocks(itertools.islice(blocks, EXECUTION_BLOCKS))).tasks:
        if not _execute(_dataset(source, model, task, parallelism), sink, watch, after):
            return StreamEnd(time.monotonic() - began, cut=True)
    return StreamEnd(time.monotonic() - began, cut=False)


def _dataset(source: Blocks, model: ray.ObjectRef, task: Task, parallelism: Parallelism) -> Dataset:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    # A task that is repeated after its node died must return the same blocks: one, whatever its size.
    context.target_max_block_size = None
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a block of large images may take longer than Ray's half an hour
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors arrive as exceptions
    register: ActorHandle = ray.remote(num_cpus=0)(Register).remote()
    batches: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "num_cpus": parallelism.cpus}
    if parallelism.scorers is None:
        # Reading does no work of its own; with the same resources Ray Data fuses it with the next stage into one task.
        resources = {"num_cpus": parallelism.cpus, "memory": parallelism.memory or None}
        dataset = ray.data.read_datasource(source, override_num_blocks=len(source.tasks), **resources)
        return dataset.map_batches(whole, fn_args=(model, task, register), **batches | resources)
    # Reads request no CPU, which scorers and refiners may occupy, so only `concurrency` keeps Ray from starting them all at once.
    dataset = ray.data.read_datasource(
        source, override_num_blocks=len(source.tasks), num_cpus=0, concurrency=parallelism.scorers + 1
    )
    pool = ActorPoolStrategy(
        min_size=min(parallelism.scorers, len(source.tasks)),  # one that waits for a while keeps its GPU and the network on it
        max_size=POOL,
        max_concurrent_calls_per_actor=Score.CALLS,
        enable_true_multi_threading=True,
    )
    one_block = {"num_cpus": parallelism.scorer_cpus, "batch_size": 1}  # a packed block; with GPUs Ray Data needs a number
    dataset = dataset.map_batches(
        Score, fn_constructor_args=(model, task, register), compute=pool, num_gpus=1, **batches | one_block
    )
    return dataset.map_batches(refine, fn_args=(task, register), **batches)


def _execute(dataset: Dataset, sink: Sink, watch: Callable[[], bool], after: ExitStack) -> bool:
    """Run one execution until it ends or `watch` returns False; returns whether it reached its end.

    A thread takes the blocks, so that a signal interrupts only this idle one: finished blocks are committed before Ray shuts down.
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

    # As iter_internal_ref_bundles does, but with a handle on the executor: one that still runs when Ray shuts down can end this
    # process.
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
