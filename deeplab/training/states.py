"""What a training run leaves behind so that it can go on: its record, and states kept by number and by best figure."""

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
    """Training cannot start or go on; the message says why and what can be done."""


@dataclass(frozen=True)
class Record:
    """`training.json` of a model folder: which run writes there. `best` is set when the run is finished."""

    id: str
    config: dict[str, Any]
    data: str
    skipped: list[str] = field(default_factory=list)
    best: dict[str, Any] | None = None


def data_digest(*splits: Labelled) -> str:
    """SHA-256 (hex) of what the splits list: classes, split names, stems in their order. Pixels are not read."""
    listed = [[data.split, data.classes, data.stems] for data in splits]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def read_record(out: Files) -> Record | None:
    """The record of the run in a model folder, None where there is none. TrainingError for one that is damaged."""
    try:
        return Record(**json.loads(out.read(checkpoint.TRAINING)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{out}/{checkpoint.TRAINING}: damaged ({error}); name another folder") from error
    except OSError as error:
        raise TrainingError(f"{out} cannot be read: {error}") from error


def require_finished(out: Files) -> None:
    """TrainingError when the folder holds states of a run that has not ended: a new one would bury them."""
    found = read_record(out)
    if found and not found.best and out.names(FOLDER):
        raise TrainingError(f"{out} holds an unfinished training: --resume continues it, another folder starts afresh")


def begin(
    out: Files, config: TrainingConfig, training: Labelled, validation: Labelled, resume: bool, skipped: list[str] | None = None
) -> Record:
    """Take the folder for a new run, or take up the run in it. Everything that speaks against it is a TrainingError.

    A new run gets an id of its own, which its states carry: no run ever reads or continues another's. `resume` holds
    configuration and data sets against those that the run began with.
    """
    found = read_record(out)
    digest = data_digest(training, validation)
    if not resume:
        require_finished(out)
        taken = not checkpoint.replaceable(out.root) if isinstance(out, LocalFiles) else not found and _foreign(out)
        if taken:
            raise TrainingError(f"{out} exists and is no model folder; it is left alone, name another")
        record = Record(f"train-{uuid.uuid4().hex[:12]}", config.as_dict(), digest, skipped or [])
        write_record(out, record)
        return record
    if found is None:
        raise TrainingError(f"{out} holds no training state to resume")
    ours = json.loads(json.dumps(config.as_dict()))
    differing = [
        f"{key} {found.config.get(key)!r}, now {ours.get(key)!r}"
        for key in {**found.config, **ours}
        if found.config.get(key) != ours.get(key)
    ]
    if differing:
        raise TrainingError(f"{out} was trained with another configuration: {'; '.join(differing)}; give the flags it began with")
    if found.data != digest:
        raise TrainingError(f"{out} was trained on other lists of images or classes; --resume goes on with the same data set only")
    return found


def _foreign(out: Files) -> bool:
    try:
        names = out.names()
    except OSError as error:
        raise TrainingError(f"{out} cannot be read: {error}") from error
    return bool(names) and checkpoint.CARD not in names


def write_record(out: Files, record: Record) -> None:
    """TrainingError where the folder cannot be written."""
    try:
        out.write(checkpoint.TRAINING, json.dumps(asdict(record), indent=2).encode())
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {error}") from error


def attach(out: Files, run: str) -> Record:
    """The record of run `run`, which someone else began. TrainingError where the folder holds none or another's."""
    found = read_record(out)
    if found is None:
        raise TrainingError(f"{out} is not the folder in which {run} began: with several machines name a shared disk or s3://")
    if found.id != run:
        raise TrainingError(f"{out} belongs to {found.id} by now, not to {run}: two trainings must not share a folder")
    return found


def finish(out: Files, record: Record, best: dict[str, Any]) -> None:
    """Mark the run as finished, then remove its states: between the two it is finished already."""
    write_record(out, replace(record, best=best))
    for name in out.names(FOLDER):
        out.remove(f"{FOLDER}/{name}")


def save(out: Files, run: str, state: dict[str, Any], keep: int) -> None:
    """Write the state of `state["step"]` and remove all but the newest `keep` and that of the best step.

    TrainingError when it cannot be written (a full disk, a store that refuses): earlier states are still there.
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
    """The newest state of this run that can be read, on the CPU; None when it has saved none yet.

    A damaged file gives way to the one before it. TrainingError when none of several can be read.
    """
    names = [name for name in out.names(FOLDER) if name.endswith(".pt")]
    damage = ""
    for name in reversed(names):
        try:
            state = torch.load(io.BytesIO(out.read(f"{FOLDER}/{name}")), map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle comes as almost any exception
            damage = f"{name}: {type(error).__name__}"
            continue
        if state.get("id") == run:
            return state
    if damage:
        raise TrainingError(f"{out}/{FOLDER}: no state can be read ({damage}); remove the folder to start afresh")
    return None


def _name(step: int) -> str:
    return f"step-{step:08d}.pt"
