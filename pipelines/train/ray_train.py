"""Training in one process or many: the plain loop here, or Ray Train around the same loop, with retries from the last state."""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypedDict

from deeplab import weights, zoo
from deeplab.classes import ClassTable
from deeplab.data.datasets import LabelledFolder
from deeplab.data.inspection import inspect
from deeplab.errors import UserError, last_line, one_line
from deeplab.networks.network import SegmentationNetwork
from deeplab.safe_names import name_after
from deeplab.training import loop, saved_states
from deeplab.training.adaptation import adapted, as_begun
from deeplab.training.presets import PRESETS, TrainingConfig
from deeplab.training.saved_states import TrainingError
from pipelines.options import TrainOptions
from pipelines.storage import filesystems
from pipelines.train.packed_datasets import Packed, open_dataset
from pipelines.train.tensorboard import Curves

if TYPE_CHECKING:
    import ray
    from ray.actor import ActorHandle
    from ray.train.torch import TorchTrainer

    from pipelines.cluster.connection import Resources

GRACE_SECONDS = 60.0  # for the workers to save their state when the run is asked to stop
EXCHANGE_SECONDS = 600  # the longest that one rank waits for another: enough for a save to a slow store


@dataclasses.dataclass(frozen=True)
class Job:
    """The settings of a training that every worker needs; small."""

    options: TrainOptions
    config: TrainingConfig
    run: str
    skipped: list[str]
    card: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Notice:
    """An event of a training other than a step. `phase`: check, start, or workers (each time a group of workers starts)."""

    phase: str
    done: int = 0
    total: int = 0
    text: str = ""


Event = loop.TrainingProgress | Notice
Watch = Callable[[Event], None]


class WorkerInput(TypedDict):
    """The argument of Ray Train's workers. `network`: in a list, as Ray resolves references that are not nested."""

    job: Job
    network: list[ray.ObjectRef]
    board: ActorHandle


def configuration(options: TrainOptions) -> TrainingConfig:
    """The preset with the values that the options override. TrainingError for values that conflict."""
    try:
        preset = PRESETS[options.preset]()
        if options.steps is not None:
            preset = dataclasses.replace(preset, passes=0.0)
        if options.learning_rate is not None:
            preset = dataclasses.replace(preset, known_classes_rate=1.0)
        return options.of_kind(TrainingConfig, preset)
    except ValueError as error:
        raise TrainingError(str(error)) from error


def open_split(options: TrainOptions, split: str, skipped: list[str]) -> LabelledFolder | Packed:
    """One split of the data set without the skipped pairs."""
    data = open_dataset(options.dataset, split, options.layout)
    return data.without(skipped) if skipped else data


def train(options: TrainOptions, watch: Watch = lambda progress: None, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Train, write the model into `model_out`, and return the best validation summary.

    One worker without an address runs deeplab.training.loop in this process. Otherwise Ray Train starts the workers, divides every
    batch over them and, if one dies, restarts them from the last state, up to `retries` times. `stop` is polled; once it returns
    True, the state is saved and loop.Stopped raised. Raises TrainingError, DatasetError, ModelError, ClusterError.
    """
    config = configuration(options)
    out = filesystems.files(filesystems.canonical(options.model_out))
    name = options.name or name_after(filesystems.last_part(options.model_out))
    if not options.resume:
        saved_states.require_finished(out)
    init = options.init or config.default_init
    if not init:
        raise TrainingError(
            f"preset {options.preset} has no weights to start from: name them with --init (a model, or ImageNet's as "
            ".safetensors or .pth in torchvision's keys)"
        )
    config, skipped = _check(options, config, weights.known_classes(init, config.architecture), watch)
    data = [open_split(options, split, skipped) for split in (options.split, options.val_split)]
    network = zoo.build(config.architecture, len(data[0].classes), seed=config.seed, **config.options)
    source = weights.initialise(network, init, data[0].classes)
    card = {
        "name": name,
        "data": {
            "folder": filesystems.last_part(options.dataset),
            "split": options.split,
            "licence": options.licence,
            "images": len(data[0]),
        },
        "init": source,
    }
    record = saved_states.begin(out, config, data[0], data[1], options.resume, skipped)
    text = f"{config.architecture}, preset {config.preset}: {source}; {len(data[0])} images to train, {len(data[1])} to validate"
    text += f", {config.steps:,} steps of {config.batch_size} crops of {config.crop}, rate {config.learning_rate:g}"
    watch(Notice("start", text=text))
    job = Job(options, config, record.id, skipped, card)
    curves = Curves(out)

    def observe(event: Event) -> None:
        if isinstance(event, loop.TrainingProgress):
            curves(event)
        watch(event)

    try:
        if options.here:
            try:
                return _work(job, network, observe, stop)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise TrainingError(
                    f"a process that loads images died ({one_line(error)}); if memory was short, use fewer --loaders. "
                    "Saved states are kept: --resume continues from the last"
                ) from error
        return _with_ray(job, network, observe, stop)
    finally:
        curves.close()


def _check(options: TrainOptions, config: TrainingConfig, known: list[str], watch: Watch) -> tuple[TrainingConfig, list[str]]:
    """The configuration as it follows from the training set and the known classes, and the stems to skip.

    A resumed run takes both from its record; a new one inspects every pair first.
    """
    if options.resume:
        record = saved_states.read_record(filesystems.files(filesystems.canonical(options.model_out)))
        return (as_begun(config, record.config), record.skipped) if record else (config, [])
    broken: list[str] = []
    for split in (options.split, options.val_split):
        data = open_split(options, split, [])
        inspection = inspect(data, report=lambda done, total: watch(Notice("check", done, total)))
        inspection.require_usable(options.skip_broken)
        broken += inspection.broken
        if split == options.split:
            config = adapted(config, inspection, known)
    return config, broken


def _work(job: Job, network: SegmentationNetwork, report: Watch, stop: Callable[[], bool]) -> dict[str, Any]:
    """Train one rank, in this process or in a worker of Ray Train."""
    options = job.options
    data = open_split(options, options.split, job.skipped)
    return loop.train(
        network,
        job.config,
        data,
        open_split(options, options.val_split, job.skipped),
        filesystems.files(filesystems.canonical(options.model_out)),
        card=job.card,
        classes=ClassTable.from_names(data.classes),
        execution=options.of_kind(loop.Execution),
        run=job.run,
        stop=stop,
        report=report,
    )


def _with_ray(job: Job, network: SegmentationNetwork, watch: Watch, stop: Callable[[], bool]) -> dict[str, Any]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from pipelines.cluster import connection
    from pipelines.train.worker_messages import Board

    options = job.options
    # The loop saves its own states; Ray's controller only starts the workers, `retries` times.
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # its errors arrive as exceptions
    with connection.session(options.address, cpus=max(options.workers, os.cpu_count() or 1)):
        resources, gpu = _resources(options, connection.resources())
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board: ActorHandle = Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        with tempfile.TemporaryDirectory(prefix="deeplab-train-") as scratch:
            trainer = _trainer(job, ray.put(network), board, resources, gpu, scratch)
            errors: list[BaseException] = []

            def fit() -> None:
                try:
                    trainer.fit()
                except BaseException as error:
                    errors.append(error)

            thread = threading.Thread(target=fit, daemon=True)
            thread.start()
            _follow(job, board, thread, resources, watch, stop)
        best: dict[str, Any] | None = ray.get(board.outcome.remote(), timeout=30)
        if best is not None:
            return best
        reason = _reason(errors[0]) if errors else "no worker returned a result"
        raise TrainingError(f"training failed: {reason}; saved states are kept, --resume continues from the last")


def _trainer(
    job: Job, network: ray.ObjectRef, board: ActorHandle, resources: dict[str, float], gpu: bool, scratch: str
) -> TorchTrainer:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    options = job.options
    workers = (options.min_workers, options.workers) if options.min_workers else options.workers
    return TorchTrainer(
        _worker,
        train_loop_config=WorkerInput(job=job, network=[network], board=board),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=EXCHANGE_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker=resources, elastic_resize_monitor_interval_s=options.resize_every
        ),
        # A unique name: Ray would restore an earlier run's snapshot of the same name.
        run_config=RunConfig(
            name=f"{job.run}-{uuid.uuid4().hex[:8]}",
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=options.retries),
        ),
    )


def _worker(config: WorkerInput) -> None:
    """The function that Ray Train runs on every worker, also after a restart."""
    import ray
    from ray.train import get_context

    job, board = config["job"], config["board"]
    if ray.get(board.failed.remote()):
        return  # only Ray's retry after an error that would occur again, and that the driver knows
    stopping, ended = threading.Event(), threading.Event()

    def listen() -> None:
        while True:
            with suppress(Exception):
                if ray.get(board.stopping.remote(), timeout=10):
                    stopping.set()
            if ended.wait(0.5):
                return

    threading.Thread(target=listen, daemon=True).start()
    size, first = get_context().get_world_size(), get_context().get_world_rank() == 0
    if first:
        board.post.remote(Notice("workers", size, text=f"{size} workers start"))
    try:
        best = _work(job, ray.get(config["network"][0]), lambda event: board.post.remote(event), stopping.is_set)
        if first:
            ray.get(board.finish.remote(best))
    except UserError as error:
        ray.get(board.fail.remote(error))
        raise
    finally:
        ended.set()


def _resources(options: TrainOptions, cluster: Resources) -> tuple[dict[str, float], bool]:
    """The resources that each worker requests, and whether they include a GPU. TrainingError if a local Ray has too few GPUs."""
    gpu = cluster.takes_gpu(options.device)
    resources = {"CPU": 1.0, "GPU": 1.0} if gpu else {"CPU": 1.0}
    if options.address is None and gpu and cluster.gpus < options.workers:
        raise TrainingError(
            f"{options.workers} workers need a GPU each, and this machine has {cluster.gpus:.0f}; --device cpu is accepted"
        )
    return resources, gpu


def _follow(
    job: Job, board: ActorHandle, thread: threading.Thread, resources: dict[str, float], watch: Watch, stop: Callable[[], bool]
) -> None:
    """Until the trainer's thread ends: pass on events, raise a worker's error, obey `stop` and the deadline."""
    import ray

    options, began, asked_to_stop = job.options, time.monotonic(), 0.0
    while True:
        thread.join(0.3)
        ended = not thread.is_alive()
        events, silence, error = ray.get(board.news.remote(), timeout=60)
        for event in events:
            watch(event)
        if error is not None:
            raise error
        if ended:
            return
        now = time.monotonic()
        if stop() and not asked_to_stop:
            if silence is None:
                raise TrainingError("stopped before the workers started")
            asked_to_stop = now
            ray.get(board.stop.remote(), timeout=30)
        if asked_to_stop and now - asked_to_stop > GRACE_SECONDS:
            raise TrainingError(f"no worker stopped within {GRACE_SECONDS:.0f} s of the request; saved states are kept")
        if (now - began if silence is None else silence) > options.start_timeout:
            raise TrainingError(_starved(options, resources))


def _starved(options: TrainOptions, resources: dict[str, float]) -> str:
    import ray

    from pipelines.cluster import connection

    total = connection.resources()
    free = ray.available_resources()
    wanted = " and ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
    available = f"{total.cpus:g} CPU and {total.gpus:g} GPU, of which {free.get('CPU', 0):g} and {free.get('GPU', 0):g} are free"
    return (
        f"no workers for {options.start_timeout:.0f} s: {options.min_workers or options.workers} need {wanted} each, and the "
        f"cluster has {available}. Use fewer --workers, add nodes, or raise --start-timeout; saved states are kept"
    )


def _reason(error: BaseException) -> str:
    """Why Ray Train gave up, in one line."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank, cause = next(iter(failures.items()))
        return f"worker {rank}: {_reason(cause)}"
    return last_line(error)
