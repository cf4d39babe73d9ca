"""Segmenting an archive: inventory, plan, then one Ray Data execution and one commit per chunk."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from deeplab import checkpoint
from deeplab.errors import UserError
from pipelines import inventory, plan, storage
from pipelines.options import SegmentOptions
from pipelines.results import ResultsTable
from pipelines.stages import Task


class TooManyErrors(UserError):
    """The share of error rows passed `max_error_rate`; what is good has been committed. `summary` says the rest."""

    def __init__(self, message: str, summary: Summary) -> None:
        super().__init__(message)
        self.summary = summary


class SegmentError(UserError):
    """A chunk could not be finished for a reason of the system's; earlier chunks stay committed."""


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
    """What a run did; `images` were planned and done by it, `already` had their row before."""

    run: str
    model: str
    results: str
    version: int | None = None
    archive_images: int = 0
    passed_over: int = 0
    already: int = 0
    images: int = 0
    errors: int = 0
    errors_by_reason: dict[str, int] = field(default_factory=dict)
    class_shares: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    seconds_by_stage: dict[str, float] = field(default_factory=dict)
    images_per_second: float = 0.0


Watch = Callable[[Progress], None]


def segment(options: SegmentOptions, watch: Watch = lambda progress: None) -> Summary:
    """Bring the results table up to date with the archive: exactly one row per (image, version, model).

    Raises ArchiveError, ModelError, ResultsError, ClusterError for what cannot start, SegmentError when a chunk
    fails, TooManyErrors at the end. Whatever is raised, committed chunks stay, and the next run goes on from them.
    """
    source = checkpoint.read(options.model)
    model = checkpoint.parse(*source)
    summary = Summary(f"run-{uuid.uuid4().hex[:12]}", model.label, storage.canonical(options.results))
    with tempfile.TemporaryDirectory(prefix="deeplab-") as folder:
        watch(Progress("inventory"))
        found = inventory.take(
            options.archive,
            Path(folder) / "inventory.parquet",
            include=options.include,
            exclude=options.exclude,
            limit=options.limit,
        )
        summary.archive_images, summary.passed_over = found.images, found.passed_over
        watch(Progress("plan", total=found.images))
        table = ResultsTable.ensure(options.results)
        planned = table.version
        todo = plan.make(
            found.path,
            table,
            model.label,
            Path(folder) / "plan.parquet",
            chunk_size=options.chunk_size,
            retry_errors=options.retry_errors,
        )
        summary.already = todo.done
        if todo.images:
            table.register(model.label, model.card)
            _run_chunks(options, model, source, table, planned, todo, summary, watch)
    summary.version = table.version
    if summary.images:
        _fill_from_table(summary, table)
        if summary.errors > options.max_error_rate * summary.images:
            share = summary.errors / summary.images
            raise TooManyErrors(
                f"{summary.errors} of {summary.images} images ({share:.1%}) became error rows, over --max-error-rate "
                f"{options.max_error_rate:.1%}; the {summary.images - summary.errors} good ones are committed",
                summary,
            )
    return summary


def _run_chunks(
    options: SegmentOptions,
    model: checkpoint.Model,
    source: tuple[Path, bytes, bytes],
    table: ResultsTable,
    planned: int,
    todo: plan.Plan,
    summary: Summary,
    watch: Watch,
) -> None:
    import ray

    from pipelines import cluster

    task = Task(
        classes=model.classes,
        stride=model.network.stride,
        align_corners=model.network.align_corners,
        predictor=options.model_dump(include={"scales", "flip", "fusion", "precision", "tile", "overlap"}),
        crf={"name": options.crf_params, "mode": options.crf_mode, "backend": options.crf_backend} if options.crf else None,
        max_pixels=options.max_pixels,
        run=summary.run,
        threads=1,
    )

    before = ResultsTable.open(table.uri, planned)
    watch(Progress("start", total=todo.images, chunks=todo.chunk_count))
    with cluster.session(options.address):
        shipped = ray.put(source)
        started = time.perf_counter()
        for number, chunk in enumerate(todo.chunks(), 1):
            # Its transaction is in the log although rows are missing: they were taken out since, or are taken up again.
            name = f"{chunk.id}-{before.version}" if before.knows(chunk.id) else chunk.id
            table.refresh()
            if table.knows(name):
                continue  # another run with the same work was faster
            base = Progress("segment", todo.images, summary.images, summary.errors, number, todo.chunk_count)
            _run_chunk(options, task, shipped, name, planned, chunk.images, summary, base, watch)
            table.refresh()
            if summary.errors > options.max_error_rate * todo.images:
                break  # the share can only stay above the limit
        summary.seconds = time.perf_counter() - started
        summary.images_per_second = summary.images / summary.seconds if summary.seconds else 0.0


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
    from pipelines.progress import Counter, Reporter
    from pipelines.sink import ResultsSink, row_key
    from pipelines.stages import Score, refine

    layout = cluster.layout(*cluster.resources(), images.num_rows)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors arrive as exceptions
    counter: Any = Counter.remote()  # type: ignore[attr-defined]
    report = Reporter(counter)
    starts = range(0, images.num_rows, layout.images_per_block)
    blocks = [images.slice(start, layout.images_per_block).select(["uri", "version"]).combine_chunks() for start in starts]
    dataset = (
        ray.data.from_arrow(blocks)
        .map_batches(
            Score,
            fn_constructor_args=(model, task, report),
            compute=ActorPoolStrategy(size=layout.scorers),
            batch_size=layout.images_per_block,
            batch_format="pyarrow",
            num_cpus=layout.scorer_cpus,
            num_gpus=layout.scorer_gpus or None,
        )
        .map_batches(
            refine,
            fn_args=(task, report),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=layout.refine_cpus,
        )
    )
    named = zip(images["uri"].to_pylist(), images["version"].to_pylist(), strict=True)
    # A row for a file that was not there gives way to any row for it.
    replaced = [row_key(uri, version) for uri, found in named for version in (found, inventory.MISSING)]
    replaced = replaced if options.retry_errors else []
    sink = ResultsSink(summary.results, summary.model, summary.run, name, images.num_rows, planned, replaced)
    finished = threading.Event()

    def poll() -> None:
        while not finished.wait(0.5):
            with suppress(Exception):  # the counter serves the display only; its node may be gone
                done, errors, _ = ray.get(counter.totals.remote(), timeout=5)
                watch(Progress("segment", base.total, base.done + done, base.errors + errors, base.chunk, base.chunks))

    poller = threading.Thread(target=poll, daemon=True)
    poller.start()
    try:
        dataset.write_datasink(sink, ray_remote_args={"num_cpus": layout.write_cpus})
    except Exception as error:
        raise SegmentError(f"chunk {base.chunk} of {base.chunks} was not committed: {_root_cause(error)}") from error
    finally:
        finished.set()
        poller.join()
    with suppress(Exception):
        _, _, seconds = ray.get(counter.totals.remote(), timeout=10)
        for stage, value in seconds.items():
            summary.seconds_by_stage[stage] = summary.seconds_by_stage.get(stage, 0.0) + value
    ray.kill(counter)
    summary.images += images.num_rows
    summary.errors += sink.errors
    watch(Progress("commit", base.total, summary.images, summary.errors, base.chunk, base.chunks))


def _root_cause(error: BaseException) -> str:
    """The innermost error in one line: Ray wraps what a worker raised several times."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None and inner is not error:
        error = inner
    # Ray Data adds advice on its own settings below what was raised.
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("To change retry attempts")]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:500]


def _fill_from_table(summary: Summary, table: ResultsTable) -> None:
    """Errors by reason and class shares of this run, read back from what was committed."""
    reason = "regexp_replace(error, '[0-9][0-9.,]*', 'N', 'g')"
    errors: list[tuple[Any, ...]] = table.query(
        f"SELECT {reason} AS reason, count(*) FROM results WHERE run = ? AND status = 'error' GROUP BY 1 ORDER BY 2 DESC, 1",
        [summary.run],
        summary.model,
    ).fetchall()
    summary.errors_by_reason = dict(errors)
    summary.errors = sum(summary.errors_by_reason.values())
    summary.class_shares = class_shares(table, summary.model, summary.run)


def class_shares(table: ResultsTable, model: str, run: str | None = None) -> dict[str, float]:
    """Share of all pixels per class name, of one run if asked; in the order of the class table."""
    pixels = dict.fromkeys(table.classes(model).names, 0)
    where = "WHERE status = 'ok'" + (" AND run = ?" if run else "")
    result = table.query(f"SELECT class_pixels FROM results {where}", [run] if run else [], model)
    while rows := result.fetchmany(10_000):
        for (counts,) in rows:
            for name, value in (counts or {}).items():
                pixels[name] += value
    total = sum(pixels.values())
    return {name: value / total for name, value in pixels.items()} if total else {}
