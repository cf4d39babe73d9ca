"""The model registry: a folder or s3:// prefix of model folders, and aliases that name the one in use.

REGISTRY/NAME-DIGEST12/{model.json,model.safetensors} never change. REGISTRY/aliases/ALIAS.json names one of them and moves by
compare-and-swap. `REGISTRY@ALIAS` is accepted wherever a model is.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deeplab.errors import UserError
from deeplab.files import Files
from deeplab.models import checkpoint
from deeplab.models.checkpoint import CARD, WEIGHTS, ModelError
from deeplab.safe_names import ALIAS
from pipelines.storage import filesystems, s3


class RegistryError(UserError):
    """The registry refuses a request; the message says why and what is there."""


@dataclass(frozen=True)
class Alias:
    """Where an alias points: `entry` (a folder's name in the registry), the model's label, the figures that moved it, and when."""

    name: str
    entry: str
    label: str
    figures: dict[str, Any] = field(default_factory=dict)
    moved_at: str = ""
    etag: str = ""  # names this state for the next move; not stored


class Registry:
    """One registry, created by the first `publish`."""

    def __init__(self, place: str) -> None:
        self.uri = filesystems.canonical(place)

    def publish(self, model: str) -> str:
        """Copy a model (folder, s3:// prefix or bundled) into the registry and return its entry; equal models are stored once."""
        source = read_model(model)
        parsed = checkpoint.parse(*source)
        entry = entry_of(parsed)
        # The card last: without it the folder is not a model.
        for name, data in ((WEIGHTS, source[2]), (CARD, source[1])):
            filesystems.write_whole(filesystems.below(self.uri, f"{entry}/{name}"), data)
        return entry

    def read(self, entry: str) -> tuple[Path, bytes, bytes]:
        """An entry, as `checkpoint.read` returns a model. Raises ModelError."""
        return read_folder(filesystems.below(self.uri, entry))

    def alias(self, name: str) -> Alias | None:
        """Where an alias points; None if there is no such alias."""
        if not ALIAS.fullmatch(name):
            raise RegistryError(f"alias {name!r}: lower-case letters, digits, dot, dash and underscore are accepted")
        tagged = filesystems.read_tagged(self._path(name))
        if tagged is None:
            return None
        try:
            return Alias(**{**json.loads(tagged[0]), "etag": tagged[1]})
        except (ValueError, TypeError) as error:
            raise RegistryError(f"{self._path(name)}: not an alias of this version ({error})") from error

    def require_moves(self) -> None:
        """StorageError if the registry's storage cannot be written or would let two moves overwrite each other."""
        if filesystems.is_s3(self.uri):
            s3.require_conditional_put(self.uri, replacing=True)

    def move(self, name: str, entry: str, figures: dict[str, Any], current: Alias | None) -> Alias:
        """Point an alias at an entry if it is still `current` (None: not there yet). Raises RegistryError, StorageError."""
        self.alias(name)
        self.require_moves()
        label = checkpoint.parse(*self.read(entry)).label
        moved = Alias(name, entry, label, figures, datetime.now(UTC).isoformat(timespec="seconds"))
        data = {key: value for key, value in asdict(moved).items() if key != "etag"}
        text = json.dumps(data, indent=2) + "\n"
        if not filesystems.write_if_unchanged(self._path(name), text.encode(), current.etag if current else None):
            raise RegistryError(f"{self.uri}@{name} was moved by someone else meanwhile; look at it and try again")
        return moved

    def _path(self, name: str) -> str:
        return f"{self.uri}/aliases/{name}.json"


INSTEAD = "--no-write only prints the result; a copy of its folder can be changed"  # of tune-crf


def is_alias(reference: str) -> bool:
    """Whether a model is named as REGISTRY@ALIAS."""
    _, at, name = reference.rpartition("@")
    return bool(at) and ("/" not in name if filesystems.is_s3(reference) else not filesystems.local_path(reference).exists())


def changeable(reference: str, model: checkpoint.Model, instead: str = INSTEAD) -> Files:
    """The folder of `model`, local or s3://, to change its card. ModelError if it must not change, with what to do `instead`.

    Models in a registry never change, as their names hold their digests; bundled ones come with the package.
    """
    if reference in checkpoint.bundled():
        raise ModelError(f"{reference} is bundled and never changes: {instead} ({checkpoint.find(reference)})")
    if is_alias(reference) or filesystems.canonical(reference).rpartition("/")[2] == entry_of(model):
        raise ModelError(f"{reference} lies in a registry, where models never change: {instead}")
    place = filesystems.files(reference)
    checkpoint.note(place)
    return place


def entry_of(model: checkpoint.Model) -> str:
    """The folder of a model in a registry."""
    return f"{model.name}-{model.digest[:12]}"


def read_model(reference: str) -> tuple[Path, bytes, bytes]:
    """A bundled model, a model folder (local or s3://) or REGISTRY@ALIAS, as `checkpoint.read` returns a model.

    Raises ModelError if there is no such model.
    """
    if is_alias(reference):
        place, _, name = reference.rpartition("@")
        alias = Registry(place).alias(name)
        if alias is None:
            raise ModelError(f"no model {reference}: the registry {place} has no alias {name}")
        return Registry(place).read(alias.entry)
    return read_folder(reference)


def read_folder(uri: str) -> tuple[Path, bytes, bytes]:
    """A model folder on any storage, as `checkpoint.read` returns a model. Raises ModelError."""
    if not filesystems.is_s3(uri):
        return checkpoint.read(filesystems.local_path(uri))
    try:
        return Path(uri), filesystems.read_versioned(f"{uri}/{CARD}")[0], filesystems.read_versioned(f"{uri}/{WEIGHTS}")[0]
    except OSError as error:
        raise ModelError(f"{uri}: cannot be read ({error}); a model folder has {WEIGHTS} and {CARD}") from error
