"""What a training run saves in order to be resumed: its record, and the states of its newest and best steps."""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from deeplab.data.datasets import Labelled
from deeplab.errors import UserError
from deeplab.files import Files, LocalFiles
from deeplab.models import checkpoint
from deeplab.training.presets import TrainingConfig

FOLDER = "training"


class TrainingError(UserError):
    """Training cannot start or continue; the message says why and what to do."""


@dataclass(frozen=True)
class Record:
    """`training.json` of a model folder: the run that writes there. `best` is set when the run is finished."""

    id: str
    config: dict[str, Any]
    data: str
    skipped: list[str] = field(default_factory=list)
    best: dict[str, Any] | None = None


def data_digest(*splits: Labelled) -> str:
    """SHA-256 (hex) of the splits' names, classes and stems in their order. Pixels are not read."""
    lists = [[data.split, data.classes, data.stems] for data in splits]
    return hashlib.sha256(json.dumps(lists).encode()).hexdigest()


def read_record(out: Files) -> Record | None:
    """The record of the run in a model folder, None if there is none. Raises TrainingError if it is damaged."""
    try:
        return Record(**json.loads(out.read(checkpoint.TRAINING)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{out}/{checkpoint.TRAINING}: damaged ({error}); name another folder") from error
    except OSError as error:
        raise TrainingError(f"{out} cannot be read: {error}") from error


def require_finished(out: Files) -> None:
    """Raises TrainingError if the folder holds states of an unfinished run, which a new one would overwrite."""
    record = read_record(out)
    if record and not record.best and out.names(FOLDER):
        raise TrainingError(f"{out} holds an unfinished training: --resume continues it; use another folder to start anew")


def begin(
    out: Files, config: TrainingConfig, training: Labelled, validation: Labelled, resume: bool, skipped: list[str] | None = None
) -> Record:
    """Start a new run in the folder, or resume the run in it. Raises TrainingError if that is not possible.

    A new run has an id of its own, which its states carry, so that no run reads or continues another's. With `resume`,
    configuration and data sets must be those that the run began with.
    """
    record = read_record(out)
    digest = data_digest(training, validation)
    if not resume:
        require_finished(out)
        if isinstance(out, LocalFiles):
            occupied = not checkpoint.replaceable(out.root)
        else:
            occupied = not record and _holds_other_files(out)
        if occupied:
            raise TrainingError(f"{out} exists and is not a model folder; choose another folder")
        record = Record(f"train-{uuid.uuid4().hex[:12]}", config.as_dict(), digest, skipped or [])
        write_record(out, record)
        return record
    if record is None:
        raise TrainingError(f"{out} holds no training state to resume")
    before, now = record.config, json.loads(json.dumps(config.as_dict()))
    differing = [f"{key} {before.get(key)!r}, now {now.get(key)!r}" for key in {**before, **now} if before.get(key) != now.get(key)]
    if differing:
        raise TrainingError(f"{out} was trained with another configuration: {'; '.join(differing)}; give the flags it began with")
    if record.data != digest:
        raise TrainingError(f"{out} was trained on other lists of images or classes; --resume needs the same data set")
    return record


def _holds_other_files(out: Files) -> bool:
    try:
        names = out.names()
    except OSError as error:
        raise TrainingError(f"{out} cannot be read: {error}") from error
    return bool(names) and checkpoint.CARD not in names


def write_record(out: Files, record: Record) -> None:
    """Raises TrainingError if the folder cannot be written."""
    try:
        out.write(checkpoint.TRAINING, json.dumps(asdict(record), indent=2).encode())
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {error}") from error


def attach(out: Files, run: str) -> Record:
    """The record of run `run`, which another process began. Raises TrainingError if the folder has none or another run's."""
    record = read_record(out)
    if record is None:
        raise TrainingError(f"{out} is not the folder in which {run} began: with several machines use a shared disk or s3://")
    if record.id != run:
        raise TrainingError(f"{out} now belongs to {record.id}, not to {run}: two trainings must not share a folder")
    return record


def finish(out: Files, record: Record, best: dict[str, Any]) -> None:
    """Mark the run as finished, and only then remove its states."""
    write_record(out, replace(record, best=best))
    for name in out.names(FOLDER):
        out.remove(f"{FOLDER}/{name}")


def save(out: Files, run: str, state: dict[str, Any], keep: int) -> None:
    """Write the state of `state["step"]`, then remove all but the newest `keep` and that of the best step.

    Raises TrainingError if it cannot be written (a full disk, a store that refuses); earlier states are kept.
    """
    attach(out, run)
    buffer = io.BytesIO()
    torch.save({**state, "id": run}, buffer)
    try:
        out.write(f"{FOLDER}/{_name(state['step'])}", buffer.getvalue())
    except OSError as error:
        raise TrainingError(f"{out}: the state of step {state['step']} was not saved ({error}); earlier ones are kept") from error
    names = [name for name in out.names(FOLDER) if name.endswith(".pt")]
    kept = {*names[-keep:], _name(state["best"].get("step", -1))}
    for name in names:
        if name not in kept:
            out.remove(f"{FOLDER}/{name}")


def newest(out: Files, run: str) -> dict[str, Any] | None:
    """The newest readable state of this run, on the CPU; None if it has saved none yet.

    A damaged file is skipped in favour of the one before it. Raises TrainingError if all are damaged.
    """
    names = [name for name in out.names(FOLDER) if name.endswith(".pt")]
    damage = ""
    for name in reversed(names):
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(out.read(f"{FOLDER}/{name}")), map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle raises almost anything
            damage = f"{name}: {type(error).__name__}"
            continue
        if state.get("id") == run:
            return state
    if damage:
        raise TrainingError(f"{out}/{FOLDER}: no state can be read ({damage}); remove the folder to start anew")
    return None


def _name(step: int) -> str:
    return f"step-{step:08d}.pt"
