"""Segmenting an archive: inventory, plan, one stream with a commit every few seconds, check.

`segment` runs all steps. Callers may also watch, retry or schedule them one by one: each step returns what the next one takes,
and all are safe to repeat.
"""

from __future__ import annotations

import re
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deeplab.crf.pydensecrf_backend import require_pydensecrf
from deeplab.errors import UserError, last_line
from deeplab.models import checkpoint
from deeplab.region_proposals import require_opencv
from deeplab.scoring.int8.choice import require_int8
from deeplab.scoring.native.engine import slow_int8
from pipelines.archive import inventory
from pipelines.archive.inventory import Inventory
from pipelines.options import SegmentOptions
from pipelines.segment import plan
from pipelines.segment.bottleneck import bound
from pipelines.segment.plan import Plan
from pipelines.storage import filesystems, model_registry
from pipelines.table import counts
from pipelines.table.commit import Committed
from pipelines.table.replacement import MaskSettings, Replacement
from pipelines.table.results_table import ResultsTable

if TYPE_CHECKING:
    from pipelines.segment.parallelism import Parallelism
    from pipelines.segment.stages import Task

# Advice that Ray Data appends to an exception.
CHAIN = "The above exception was the direct cause of the following exception:"
RAY_ADVICE = ("To change retry attempts", "Failed to apply UDF transform")


@dataclass(frozen=True)
class SegmentProgress:
    """The state of a run. `phase`: inventory, plan, start, segment, or commit after each commit. Counts are of this run's images.

    `committed`: images with a row; `version`: the table's; `already`: images of the archive that had a row before the run;
    `seconds`: of the committed images by stage, summed over processes.
    """

    phase: str
    total: int = 0
    done: int = 0
    errors: int = 0
    committed: int = 0
    version: int | None = None
    already: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """The result of a run.

    `images`, `errors`: its rows in the table; `already`: images that had a row before; `elsewhere`: images whose row another run
    committed meanwhile; `made_otherwise`: images left as they are whose mask was made with `other_settings`; `replaced`: images
    whose earlier row gave way; `other_versions`: labels in the table of models of the same name; `passed_over`: files left out by
    name; `outputs`: files and folders left out as outputs of this program;
    `bound`: the stage that limited its speed.
    """

    run: str
    model: str
    results: str
    version: int | None = None
    archive_images: int = 0
    passed_over: int = 0
    outputs: int = 0
    already: int = 0
    images: int = 0
    errors: int = 0
    elsewhere: int = 0
    made_otherwise: int = 0
    other_settings: Sequence[str] = ()
    replaced: int = 0
    other_versions: Sequence[str] = ()
    commits: int = 0
    errors_by_reason: Mapping[str, int] = field(default_factory=dict)
    class_shares: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    seconds_by_stage: Mapping[str, float] = field(default_factory=dict)
    images_by_node: Mapping[str, int] = field(default_factory=dict)
    images_per_second: float = 0.0
    bound: str = ""


class TooManyErrors(UserError):
    """The share of error rows exceeds `max_error_rate`; all rows are committed. `summary`: the run."""

    def __init__(self, message: str, summary: Summary) -> None:
        super().__init__(message)
        self.summary = summary


class SegmentError(UserError):
    """The stream ended early; finished images are committed. `passing`: the same run may succeed later."""

    def __init__(self, message: str, passing: bool = True) -> None:
        super().__init__(message)
        self.passing = passing


Watch = Callable[[SegmentProgress], None]


def unwatched(progress: SegmentProgress) -> None:
    """A watch that does nothing."""


@dataclass(frozen=True)
class Run:
    """One run: its options, the model as returned by `checkpoint.read` and loaded, and the run's id."""

    options: SegmentOptions
    source: tuple[Path, bytes, bytes]
    model: checkpoint.Model
    id: str

    @property
    def results(self) -> str:
        return filesystems.canonical(self.options.results)

    @property
    def settings(self) -> MaskSettings:
        """How its masks are made."""
        refinement, refined = self.options.refinement(self.model), list[str]()
        if refinement is not None:
            # The torch backend hands an image that does not fit a GPU to the native one (`stages.labelled`).
            refined = [refinement.short(), *([replace(refinement, backend="native").short()] * (refinement.backend == "torch"))]
        return MaskSettings(self.options.scored(self.model), tuple(refined), self.options.precision)

    @property
    def replacing(self) -> Replacement:
        """The rows that it replaces."""
        return Replacement(self.id, self.options.retry_errors, self.settings if self.options.redo else None)


@dataclass(frozen=True)
class Outcome:
    """The result of a stream: its commits, its seconds, the stage that limited it, and whether errors cut it short."""

    committed: Committed
    seconds: float = 0.0
    bound: str = ""
    cut: bool = False


def begin(options: SegmentOptions) -> Run:
    """A run of these options. Raises ModelError, ProposalsUnavailable, Int8Error for a model that cannot be used so."""
    if options.crf and options.crf_backend == "pydensecrf" and options.address is None:
        require_pydensecrf()
    source = model_registry.read_model(options.model)
    model = options.prepared(checkpoint.parse(*source))
    if model.by_proposals and options.address is None:
        require_opencv()
    if options.precision == "int8":
        for network in model.networks:
            require_int8(network)
    return Run(options, source, model, f"run-{uuid.uuid4().hex[:12]}")


def note(options: SegmentOptions) -> str | None:
    """What a person should know before the run starts: one line, or nothing."""
    return slow_int8() if options.precision == "int8" and options.address is None else None


def take_inventory(run: Run, folder: Path, watch: Watch = unwatched) -> Inventory:
    """List the archive into a file of `folder`. Raises ArchiveError."""
    watch(SegmentProgress("inventory"))
    options = run.options
    path = folder / "inventory.parquet"
    return inventory.take(options.archive, path, include=options.include, exclude=options.exclude, limit=options.limit)


def make_plan(run: Run, listed: Inventory, folder: Path, watch: Watch = unwatched) -> Plan:
    """The images of the inventory that have no row; creates the table if there is none. Raises ResultsError."""
    watch(SegmentProgress("plan", total=listed.images))
    table = ResultsTable.ensure(run.results)
    return plan.make(listed.path, table, run.model.label, folder / "plan.parquet", run.replacing, run.settings)


def execute(run: Run, todo: Plan, watch: Watch = unwatched) -> Outcome:
    """Segment and commit the planned images, on a Ray that is started here or joined. Raises ClusterError, SegmentError.

    Whatever ends the stream, even Ctrl-C, finished images are committed first. It is cut short once there are so many error rows
    that the run must fail.
    """
    if not todo.images:
        return Outcome(Committed(version=todo.version))
    import ray

    from pipelines.cluster import connection
    from pipelines.segment import stream
    from pipelines.segment.prometheus import Metrics
    from pipelines.segment.sink import Sink
    from pipelines.table.commit import Committer

    options = run.options
    ResultsTable.open(run.results, patient=True).register(run.model.label, run.model.card)
    watch(SegmentProgress("start", todo.images, already=todo.done))
    with connection.session(options.address):
        connection.wake(options.start_timeout)
        committer = Committer(run.results, run.model.label, run.id, todo.version, run.replacing)
        metrics = Metrics(run.results, run.model.label)
        sink = Sink(committer, options.commit_every)
        reported = sink.committed

        def report() -> bool:
            nonlocal reported
            phase, before, reported = "segment" if reported is sink.committed else "commit", reported, sink.committed
            done = reported.images + reported.left_out
            metrics.progress(todo.images - done, sink.finished - done)
            metrics.committed(before, reported)
            counted = sink.finished, reported.errors, done, reported.version, todo.done
            watch(SegmentProgress(phase, todo.images, *counted, seconds=reported.seconds))
            return reported.errors <= options.max_error_rate * todo.images

        try:
            with ExitStack() as after, sink:  # the sink is closed first
                spread = _spread(run)
                end = stream.run(todo, ray.put(run.source), task_of(run), spread, sink, report, after)
        except Exception as error:
            done = f"{sink.committed.images} of {todo.images} images are committed"
            lost = f", {committer.uncommitted} more are finished but could not be committed" if committer.uncommitted else ""
            root = _root_cause(error)
            passing = filesystems.passes(root) or not isinstance(root, UserError | OSError)
            raise SegmentError(
                f"the run stopped, {done}{lost} (the same command continues from there): {_reason(error, root)}", passing
            ) from error
        report()
        sentence = ""
        with suppress(Exception):  # the work is done, even if the cluster goes away now
            sentence = bound(sink.committed.seconds, end.seconds, _spread(run))
        return Outcome(sink.committed, end.seconds, sentence, end.cut)


def _spread(run: Run) -> Parallelism:
    """How the cluster that this process has joined does the run."""
    from pipelines.cluster import connection
    from pipelines.segment.parallelism import parallelism

    return parallelism(connection.resources(), len(run.source[2]), gpus=run.options.precision != "int8")


def task_of(run: Run) -> Task:
    """The settings of a run that the stages need."""
    from pipelines.segment.stages import Task

    options, model = run.options, run.model
    return Task(
        classes=model.classes,
        output_stride=model.output_stride,
        stride=model.stride,
        geometry=model.geometry,
        scoring=options.scoring(model),
        quality=options.quality,
        refinement=options.refinement(model),
        max_pixels=options.max_pixels,
        run=run.id,
        threads=1,
    )


def check(run: Run, listed: Inventory, todo: Plan, outcome: Outcome) -> Summary:
    """Read back the rows that the run committed. Raises SegmentError if rows are missing or doubled, TooManyErrors."""
    table = ResultsTable.open(run.results, patient=True)
    label, committed = run.model.label, outcome.committed
    images, errors = counts.rows_of(table, label, run.id)
    summary = Summary(
        run.id,
        label,
        run.results,
        version=table.version,
        archive_images=listed.images,
        passed_over=listed.passed_over,
        outputs=listed.outputs,
        already=todo.done,
        images=images,
        errors=errors,
        elsewhere=committed.left_out,
        made_otherwise=todo.made_otherwise,
        other_settings=todo.other_settings,
        replaced=todo.replaced if images else 0,
        other_versions=[name for name in table.models() if name != label and name.partition("@")[0] == label.partition("@")[0]],
        commits=committed.commits,
        errors_by_reason=counts.errors_by_reason(table, label, run.id) if errors else {},
        class_shares=counts.class_shares(table, label, run.id) if images else {},
        seconds=outcome.seconds,
        seconds_by_stage=committed.seconds,
        images_by_node=committed.nodes,
        images_per_second=images / outcome.seconds if outcome.seconds else 0.0,
        bound=outcome.bound,
    )
    lost, doubled = counts.lost_and_doubled(table, label, todo.path) if todo.images else (0, 0)
    if doubled or (lost and not outcome.cut):
        raise SegmentError(
            f"{run.results}: {lost} planned images have no row and {doubled} have two; nothing else was changed. "
            "Run the same command to add the missing rows"
        )
    return within_limit(summary, run.options.max_error_rate)


def check_rows(summary: Summary, max_error_rate: float) -> Summary:
    """Check the rows of a run of another process. Raises SegmentError unless each of its images has one row; TooManyErrors."""
    table = ResultsTable.open(summary.results, patient=True)
    rows, images = counts.rows_and_images(table, summary.model, summary.run)
    if not rows == images == summary.images:
        raise SegmentError(f"{summary.results}: {rows} rows of {images} images for {summary.images} images of {summary.run}")
    return within_limit(summary, max_error_rate)


def within_limit(summary: Summary, max_error_rate: float) -> Summary:
    """The summary itself, or TooManyErrors."""
    if summary.errors > max_error_rate * summary.images:
        share = summary.errors / summary.images
        raise TooManyErrors(
            f"{summary.errors} of {summary.images} images ({share:.1%}) became error rows, over --max-error-rate "
            f"{max_error_rate:.1%}; the {summary.images - summary.errors} good ones are committed. `deeplab report` names "
            "the others with their reasons, --retry-errors tries them again, a higher limit lets a run with them succeed",
            summary,
        )
    return summary


def segment(options: SegmentOptions, watch: Watch = unwatched) -> Summary:
    """Bring the results table up to date with the archive: exactly one row per (image, version, model).

    Raises ArchiveError, ModelError, ResultsError, ClusterError if it cannot start, SegmentError if the stream ends early,
    TooManyErrors at the end. Committed rows are kept in any case, and the next run continues from them.
    """
    run = begin(options)
    with tempfile.TemporaryDirectory(prefix="deeplab-") as name:
        folder = Path(name)
        listed = take_inventory(run, folder, watch)
        todo = make_plan(run, listed, folder, watch)
        return check(run, listed, todo, execute(run, todo, watch))


def _reason(error: BaseException, root: BaseException) -> str:
    """Class and message of what ended the stream, in one line. Where Ray Data lost a worker's exception, its text still has it."""
    parts = str(error).split(CHAIN)
    if type(root).__name__ != "UserCodeException" or len(parts) < 2:
        return last_line(root, RAY_ADVICE)
    lines = [line.strip() for line in parts[-2].splitlines() if line.strip()]
    return re.sub(r"^[\w.]+\.(\w+: )", r"\1", lines[-1])[:500]


def _root_cause(error: BaseException) -> BaseException:
    """The innermost error, or our own UserError around it: Ray wraps an exception of a worker several times."""
    while True:
        inner = getattr(error, "cause", None) or (None if isinstance(error, UserError) else error.__cause__)
        if inner is None or inner is error:
            return error
        error = inner
