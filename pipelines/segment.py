"""Segmenting an archive: inventory, plan, then one Ray Data execution and one commit per chunk."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from deeplab import checkpoint
from deeplab.crf.bridge import require_pydensecrf
from deeplab.errors import UserError
from pipelines import account, inventory, plan, registry, storage
from pipelines.bound import bound
from pipelines.layout import layout as layout_of
from pipelines.options import SegmentOptions
from pipelines.results import ResultsTable
from pipelines.stages import Task


class TooManyErrors(UserError):
    """The share of error rows passed `max_error_rate`; what is good has been committed. `summary` says the rest."""

    def __init__(self, message: str, summary: Summary) -> None:
        super().__init__(message)
        self.summary = summary


class SegmentError(UserError):
    """A chunk could not be finished; earlier chunks stay committed. `passing`: for a reason of the system's."""

    def __init__(self, message: str, passing: bool = True) -> None:
        super().__init__(message)
        self.passing = passing


@dataclass
class Progress:
    """What a watcher is told: `phase` is inventory, plan, start, segment or commit; images count this run's only."""

    phase: str
    total: int = 0
    done: int = 0
    errors: int = 0
    chunk: int = 0
    chunks: int = 0


@dataclass
class Summary:
    """What a run did; `images` have their row from it, `already` had it before, `elsewhere` got it from another run meanwhile.
    `bound`: the stage that held it up."""

    run: str
    model: str
    results: str
    version: int | None = None
    archive_images: int = 0
    passed_over: int = 0
    already: int = 0
    images: int = 0
    elsewhere: int = 0
    errors: int = 0
    errors_by_reason: dict[str, int] = field(default_factory=dict)
    class_shares: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    seconds_by_stage: dict[str, float] = field(default_factory=dict)
    images_per_second: float = 0.0
    bound: str = ""


Watch = Callable[[Progress], None]


@dataclass(frozen=True)
class Work:
    """One chunk of a run: its number (from 1), the name of its transaction, its images (uri, version, bytes)."""

    number: int
    name: str
    images: pa.Table


class Segmentation:
    """One run, step by step: inventory, plan, chunks on a Ray session, check. `segment` takes them in order.

    The steps are apart for callers that watch, retry or schedule each of them; all of them are safe to repeat.
    `folder` holds the inventory and the plan while the run lasts. Raises ModelError for a model that cannot be used.
    """

    def __init__(self, options: SegmentOptions, folder: Path, watch: Watch = lambda progress: None) -> None:
        self.options, self.folder, self.watch = options, folder, watch
        self.source = registry.read_model(options.model)
        self.model = checkpoint.parse(*self.source)
        arguments = self.model.crf(options.crf_params) if options.crf else {}
        # On a GPU sums in a fixed order, so that a block that is done again has the same masks.
        crf = {"mode": options.crf_mode, "backend": options.crf_backend, "device": "auto", "deterministic": True, **arguments}
        self.crf = crf if options.crf else None
        if options.crf and options.crf_backend == "pydensecrf" and options.address is None:
            require_pydensecrf()
        self.predictor = options.model_dump(include={"scales", "flip", "fusion", "precision", "tile", "overlap"})
        self.summary = Summary(f"run-{uuid.uuid4().hex[:12]}", self.model.label, storage.canonical(options.results))

    def take_inventory(self) -> inventory.Inventory:
        """List the archive. Raises ArchiveError."""
        self.watch(Progress("inventory"))
        found = inventory.take(
            self.options.archive,
            self.folder / "inventory.parquet",
            include=self.options.include,
            exclude=self.options.exclude,
            limit=self.options.limit,
        )
        self.summary.archive_images, self.summary.passed_over = found.images, found.passed_over
        return found

    def make_plan(self) -> plan.Plan:
        """What of the inventory the table has no row of; the table is made where there is none. Raises ResultsError."""
        self.watch(Progress("plan", total=self.summary.archive_images))
        self.table = ResultsTable.ensure(self.options.results)
        self.planned = self.table.version
        self.plan = plan.make(
            self.folder / "inventory.parquet",
            self.table,
            self.model.label,
            self.folder / "plan.parquet",
            chunk_size=self.options.chunk_size,
            retry_errors=self.options.retry_errors,
        )
        self.summary.already, self.summary.version = self.plan.done, self.table.version
        return self.plan

    @contextmanager
    def chunks(self) -> Iterator[Iterator[Work]]:
        """Ray for the body, with the chunks that nobody has committed yet; `run_chunk` does one. Raises ClusterError.

        The iterator ends early when so many rows are errors that the run fails in any case.
        """
        import ray

        from pipelines import cluster

        self.table.register(self.model.label, self.model.card)
        before = ResultsTable.open(self.table.uri, self.planned, patient=True)
        self.watch(Progress("start", total=self.plan.images, chunks=self.plan.chunk_count))

        def pending() -> Iterator[Work]:
            for number, chunk in enumerate(self.plan.chunks(), 1):
                # Its transaction is in the log although rows are missing: they were taken out since, or are taken up again.
                name = f"{chunk.id}-{before.version}" if before.knows(chunk.id) else chunk.id
                self.table.refresh()
                if self.table.knows(name):  # another run with the same work was faster
                    self.summary.elsewhere += chunk.images.num_rows
                    continue
                yield Work(number, name, chunk.images)
                self.table.refresh()
                if self.summary.errors > self.options.max_error_rate * self.plan.images:
                    break  # the share can only stay above the limit

        with cluster.session(self.options.address):
            self.shipped = ray.put(self.source)
            started = time.perf_counter()
            try:
                yield pending()
            finally:
                self.summary.seconds = time.perf_counter() - started
                self.summary.images_per_second = self.summary.images / self.summary.seconds if self.summary.seconds else 0.0
                with suppress(Exception):  # a cluster that died is what ended the body, and is told of by that
                    layout = layout_of(*cluster.resources(), cluster.memory(), self.plan.images)
                    self.summary.bound = bound(self.summary.seconds_by_stage, self.summary.seconds, layout)

    def run_chunk(self, work: Work) -> None:
        """Segment and commit one chunk. Raises SegmentError; a repetition finds what was committed and does nothing."""
        options = self.options
        task = Task(
            classes=self.model.classes,
            stride=self.model.network.stride,
            align_corners=self.model.network.align_corners,
            predictor=self.predictor,
            crf=self.crf,
            max_pixels=options.max_pixels,
            run=self.summary.run,
            threads=1,
        )
        done = self.summary.images + self.summary.elsewhere
        base = Progress("segment", self.plan.images, done, self.summary.errors, work.number, self.plan.chunk_count)
        _run_chunk(options, task, self.shipped, work.name, self.planned, work.images, self.summary, base, self.watch)

    def adopt(self, summary: Summary) -> None:
        """Take over what another process did of this run's plan."""
        self.summary = summary

    def check(self) -> Summary:
        """Read back what this run committed. Raises SegmentError where rows are lost or doubled, TooManyErrors."""
        summary, options = self.summary, self.options
        self.table.refresh()
        summary.version = self.table.version
        if summary.images:
            summary.errors_by_reason = account.errors_by_reason(self.table, summary.model, summary.run)
            summary.errors = sum(summary.errors_by_reason.values())
            summary.class_shares = account.class_shares(self.table, summary.model, summary.run)
            lost, doubled = account.lost_and_doubled(self.table, summary.model, self.plan.path)
            if doubled or (lost and summary.images + summary.elsewhere >= self.plan.images):
                raise SegmentError(
                    f"{summary.results}: {lost} planned images have no row and {doubled} have two; nothing else was changed"
                )
            if summary.errors > options.max_error_rate * summary.images:
                share = summary.errors / summary.images
                raise TooManyErrors(
                    f"{summary.errors} of {summary.images} images ({share:.1%}) became error rows, over --max-error-rate "
                    f"{options.max_error_rate:.1%}; the {summary.images - summary.errors} good ones are committed",
                    summary,
                )
        return summary


def segment(options: SegmentOptions, watch: Watch = lambda progress: None) -> Summary:
    """Bring the results table up to date with the archive: exactly one row per (image, version, model).

    Raises ArchiveError, ModelError, ResultsError, ClusterError for what cannot start, SegmentError when a chunk
    fails, TooManyErrors at the end. Whatever is raised, committed chunks stay, and the next run goes on from them.
    """
    with tempfile.TemporaryDirectory(prefix="deeplab-") as folder:
        run = Segmentation(options, Path(folder), watch)
        run.take_inventory()
        if run.make_plan().images:
            with run.chunks() as chunks:
                for work in chunks:
                    run.run_chunk(work)
        return run.check()


def _run_chunk(
    options: SegmentOptions,
    task: Task,
    model: Any,
    name: str,
    planned: int,
    images: pa.Table,
    summary: Summary,
    base: Progress,
    watch: Watch,
) -> None:
    import ray
    from ray.data import ActorPoolStrategy

    from pipelines import cluster
    from pipelines.custody import Register
    from pipelines.metrics import Metrics
    from pipelines.progress import Counter, Reporter
    from pipelines.sink import ResultsSink, row_key
    from pipelines.stages import Score, refine, whole

    layout = layout_of(*cluster.resources(), cluster.memory(), images.num_rows)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a block of large images takes longer than Ray's half an hour
    # Ray Data would split the CPUs evenly between segmenting and writing, which needs next to none. Rows are small and no more
    # tasks run than there are CPUs, so nothing piles up. With GPUs scores do, and its limits stay.
    context.op_resource_reservation_enabled = layout.scorers is not None
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors arrive as exceptions
    counter: Any = Counter.remote()  # type: ignore[attr-defined]
    register = ray.remote(num_cpus=0)(Register).remote()
    report = Reporter(counter)
    starts = range(0, images.num_rows, layout.images_per_block)
    blocks = [images.slice(start, layout.images_per_block).combine_chunks() for start in starts]
    dataset = ray.data.from_arrow(blocks)
    blockwise: dict[str, Any] = {"batch_size": layout.images_per_block, "batch_format": "pyarrow"}
    if layout.scorers is None:
        blockwise |= {"num_cpus": layout.cpus, "concurrency": min(layout.tasks, len(blocks))}
        dataset = dataset.map_batches(whole, fn_args=(model, task, report, register), **blockwise)
    else:
        dataset = dataset.map_batches(
            Score,
            fn_constructor_args=(model, task, report, register),
            compute=ActorPoolStrategy(size=layout.scorers),
            num_cpus=layout.scorer_cpus,
            num_gpus=1,
            **blockwise,
        )
        rest: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "num_cpus": layout.cpus}
        dataset = dataset.map_batches(refine, fn_args=(task, report, register), **rest)
    named = zip(images["uri"].to_pylist(), images["version"].to_pylist(), strict=True)
    # A row for a file that was not there gives way to any row for it.
    replaced = [row_key(uri, version) for uri, found in named for version in (found, inventory.MISSING)]
    replaced = replaced if options.retry_errors else []
    sink = ResultsSink(summary.results, summary.model, summary.run, name, images.num_rows, planned, replaced, counter)
    finished = threading.Event()

    metrics = Metrics(summary.results, summary.model)
    metrics.progress(base.total - base.done, 0)

    def poll() -> None:
        while not finished.wait(0.5):
            with suppress(Exception):  # the counter serves the display only; its node may be gone
                done, errors, _ = ray.get(counter.totals.remote(), timeout=5)
                metrics.progress(base.total - base.done, done)
                watch(Progress("segment", base.total, base.done + done, base.errors + errors, base.chunk, base.chunks))

    poller = threading.Thread(target=poll, daemon=True)
    poller.start()
    try:
        dataset.write_datasink(sink, ray_remote_args={"num_cpus": layout.write_cpus})
    except Exception as error:
        root = _root_cause(error)
        passing = storage.passes(root) or not isinstance(root, UserError | OSError)
        raise SegmentError(f"chunk {base.chunk} of {base.chunks} was not committed: {_one_line(root)}", passing) from error
    finally:
        finished.set()
        poller.join()
    seconds: dict[str, float] = {}
    with suppress(Exception):
        seconds = ray.get(counter.totals.remote(), timeout=10)[2]
        for stage, value in seconds.items():
            summary.seconds_by_stage[stage] = summary.seconds_by_stage.get(stage, 0.0) + value
    ray.kill(counter)
    ray.kill(register)
    summary.images += sink.rows
    summary.elsewhere += images.num_rows - sink.rows
    summary.errors += sink.errors
    metrics.committed(sink.rows, sink.errors, seconds)
    done = summary.images + summary.elsewhere
    metrics.progress(base.total - done, 0)
    watch(Progress("commit", base.total, done, summary.errors, base.chunk, base.chunks))


def _root_cause(error: BaseException) -> BaseException:
    """The innermost error, or our own about it: Ray wraps what a worker raised several times."""
    while True:
        inner = getattr(error, "cause", None) or (None if isinstance(error, UserError) else error.__cause__)
        if inner is None or inner is error:
            return error
        error = inner


def _one_line(error: BaseException) -> str:
    # Ray Data adds its own view and advice on its settings below what was raised.
    own = ("To change retry attempts", "Failed to apply UDF transform")
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(own)]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:500]
