"""Training on one process or many: the plain loop here, or Ray Train over the same loop, with retries from the last state."""

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
from typing import TYPE_CHECKING, Any

from deeplab import weights, zoo
from deeplab.classes import ClassTable
from deeplab.data.datasets import LabelledFolder
from deeplab.data.inspection import inspect
from deeplab.errors import UserError, last_line, one_line
from deeplab.names import name_after
from deeplab.networks.network import SegmentationNetwork
from deeplab.training import loop, states
from deeplab.training.presets import PRESETS, TrainingConfig
from deeplab.training.states import TrainingError
from pipelines.options import TrainOptions
from pipelines.storage import filesystems
from pipelines.train.packed_datasets import Packed, open_dataset
from pipelines.train.tensorboard import Curves

if TYPE_CHECKING:
    from pipelines.cluster.connection import Resources

GRACE_SECONDS = 60.0  # for the workers to save their state when the run is asked to stop
EXCHANGE_SECONDS = 600  # the longest that one rank waits for another: a save to a slow store fits


@dataclasses.dataclass(frozen=True)
class Job:
    """What every worker needs; nothing in it is large."""

    options: TrainOptions
    config: TrainingConfig
    run: str
    skipped: list[str]
    card: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Notice:
    """What a watcher is told besides steps: `phase` is check, start, or workers (each time a group of them starts)."""

    phase: str
    done: int = 0
    total: int = 0
    text: str = ""


Watch = Callable[[loop.TrainingProgress | Notice], None]


def configuration(options: TrainOptions) -> TrainingConfig:
    """The preset with what the options override. TrainingError for values that do not go together."""
    try:
        return options.of_kind(TrainingConfig, PRESETS[options.preset]())
    except ValueError as error:
        raise TrainingError(str(error)) from error


def open_split(options: TrainOptions, split: str, skipped: list[str]) -> LabelledFolder | Packed:
    """One split of the data set, less the pairs that are left out."""
    data = open_dataset(options.dataset, split, options.layout)
    return data.without(skipped) if skipped else data


def train(options: TrainOptions, watch: Watch = lambda progress: None, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Train as the options say and return the best validation summary; the model lies in `model_out`.

    One worker without an address is deeplab.training.loop in this process. Otherwise Ray Train starts the workers, divides
    every batch over them, and starts them again from the last state, `retries` times, when one dies. `stop` is asked
    all the time; once it says yes, the state is saved and loop.Stopped raised. Raises TrainingError, DatasetError,
    ModelError, ClusterError for what a person can put right.
    """
    config = configuration(options)
    out = filesystems.files(filesystems.canonical(options.model_out))
    name = options.name or name_after(filesystems.last_part(options.model_out))
    if not options.resume:
        states.require_finished(out)
    skipped = _check(options, watch)
    data = [open_split(options, split, skipped) for split in (options.split, options.val_split)]
    network = zoo.build(config.architecture, len(data[0].classes), seed=config.seed, **config.options)
    started = weights.initialise(network, options.init)
    card = {
        "name": name,
        "data": {"folder": filesystems.last_part(options.dataset), "split": options.split},
        "init": started,
    }
    card["data"] |= {"licence": options.licence, "images": len(data[0])}  # type: ignore[operator]
    record = states.begin(out, config, data[0], data[1], options.resume, skipped)
    text = f"{config.architecture}, preset {config.preset}: {started}; {len(data[0])} images to train, {len(data[1])} to validate"
    watch(Notice("start", text=text))
    job = Job(options, config, record.id, skipped, card)
    curves = Curves(out)

    def observe(progress: loop.TrainingProgress | Notice) -> None:
        if isinstance(progress, loop.TrainingProgress):
            curves(progress)
        watch(progress)

    try:
        if options.here:
            try:
                return _work(job, network, observe, stop)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise TrainingError(
                    f"a process that loads images died ({one_line(error)}); if memory was short, fewer --loaders "
                    "help. States are kept, --resume goes on from the last"
                ) from error
        return _with_ray(job, network, observe, stop)
    finally:
        curves.close()


def _check(options: TrainOptions, watch: Watch) -> list[str]:
    """The stems to leave out. A resumed run takes its own; a new one looks at every pair first."""
    if options.resume:
        record = states.read_record(filesystems.files(filesystems.canonical(options.model_out)))
        return record.skipped if record else []
    broken: list[str] = []
    for split in (options.split, options.val_split):
        data = open_split(options, split, [])
        found = inspect(data, report=lambda done, total: watch(Notice("check", done, total)))
        found.require_usable(options.skip_broken)
        broken += found.broken
    return broken


def _work(job: Job, network: SegmentationNetwork, report: Watch, stop: Callable[[], bool]) -> dict[str, Any]:
    """One rank's share of the job, wherever it runs."""
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
    from pipelines.train.mailbox import Board

    options = job.options
    # The loop's own states are the checkpoints; Ray's controller only starts the workers, and its retries are ours.
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # its errors arrive as exceptions
    with connection.session(options.address, cpus=max(options.workers, os.cpu_count() or 1)):
        resources, gpu = _resources(options, connection.resources())
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board: Any = Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        with tempfile.TemporaryDirectory(prefix="deeplab-train-") as scratch:
            trainer = _trainer(job, ray.put(network), board, resources, gpu, scratch)
            ended: list[Any] = []

            def fit() -> None:
                try:
                    ended.append(trainer.fit())
                except BaseException as error:
                    ended.append(error)

            thread = threading.Thread(target=fit, daemon=True)
            thread.start()
            _follow(job, board, thread, resources, watch, stop)
        found = ray.get(board.outcome.remote(), timeout=30)
        if found is not None:
            return found
        raise TrainingError(f"training failed: {_reason(ended[0])}; states are kept, --resume goes on from the last")


def _trainer(job: Job, network: Any, board: Any, resources: dict[str, float], gpu: bool, scratch: str) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    options = job.options
    workers = (options.min_workers, options.workers) if options.min_workers else options.workers
    return TorchTrainer(
        _worker,
        train_loop_config={"job": job, "network": [network], "board": board},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=EXCHANGE_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker=resources, elastic_resize_monitor_interval_s=options.resize_every
        ),
        # A name that is never used again: Ray would take up an earlier run's snapshot by it.
        run_config=RunConfig(
            name=f"{job.run}-{uuid.uuid4().hex[:8]}",
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=options.retries),
        ),
    )


def _worker(config: dict[str, Any]) -> None:
    """What Ray Train runs on every worker, also after a restart."""
    import ray
    from ray.train import get_context

    job, board = config["job"], config["board"]
    if ray.get(board.failed.remote()):
        return  # an error that would come again: the driver knows it, and this start is only Ray's retry
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
        best = _work(job, ray.get(config["network"][0]), lambda progress: board.post.remote(progress), stopping.is_set)
        if first:
            ray.get(board.finish.remote(best))
    except UserError as error:
        ray.get(board.fail.remote(error))
        raise
    finally:
        ended.set()


def _resources(options: TrainOptions, there: Resources) -> tuple[dict[str, float], bool]:
    """What each worker asks for, and whether it is a GPU. A Ray of our own has what it has: too much is refused at once."""
    gpu = there.takes_gpu(options.device)
    asked = {"CPU": 1.0, "GPU": 1.0} if gpu else {"CPU": 1.0}
    if options.address is None and gpu and there.gpus < options.workers:
        raise TrainingError(
            f"{options.workers} workers need a GPU each, and this machine has {there.gpus:.0f}; --device cpu is accepted"
        )
    return asked, gpu


def _follow(
    job: Job, board: Any, thread: threading.Thread, resources: dict[str, float], watch: Watch, stop: Callable[[], bool]
) -> None:
    """Until the trainer's thread ends: pass progress on, raise what a worker raised, heed `stop` and the deadline."""
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
                raise TrainingError("stopped before the workers had started")
            asked_to_stop = now
            ray.get(board.stop.remote(), timeout=30)
        if asked_to_stop and now - asked_to_stop > GRACE_SECONDS:
            raise TrainingError(f"no worker stopped within {GRACE_SECONDS:.0f} s of being asked; earlier states are kept")
        if (now - began if silence is None else silence) > options.start_timeout:
            raise TrainingError(_starved(options, resources))


def _starved(options: TrainOptions, resources: dict[str, float]) -> str:
    import ray

    from pipelines.cluster import connection

    has = connection.resources()
    free = ray.available_resources()
    wanted = " and ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
    of_cluster = f"{has.cpus:g} CPU and {has.gpus:g} GPU, of which {free.get('CPU', 0):g} and {free.get('GPU', 0):g} are free"
    return (
        f"no workers for {options.start_timeout:.0f} s: {options.min_workers or options.workers} with {wanted} each were asked "
        f"for, and the cluster has {of_cluster}. Ask for fewer --workers, add nodes, or raise --start-timeout; states are kept"
    )


def _reason(error: Any) -> str:
    """One line of why Ray Train gave up."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank, cause = next(iter(failures.items()))
        return f"worker {rank}: {_reason(cause)}"
    return last_line(error)
