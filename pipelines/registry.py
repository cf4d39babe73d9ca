"""The model registry: a folder or s3:// prefix of model folders, and aliases that name the one in use.

REGISTRY/NAME-DIGEST12/{model.json,model.safetensors} are never changed; REGISTRY/aliases/ALIAS.json names one of them
and moves by compare-and-swap. `REGISTRY@ALIAS` is taken wherever a model is.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deeplab import checkpoint
from deeplab.checkpoint import CARD, WEIGHTS, ModelError
from deeplab.errors import UserError
from pipelines import s3, storage

ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class RegistryError(UserError):
    """The registry cannot do what was asked; the message says why and what is there."""


@dataclass(frozen=True)
class Alias:
    """Where an alias points: `entry` (a folder's name in the registry), the model's label, why, and since when."""

    name: str
    entry: str
    label: str
    figures: dict[str, Any] = field(default_factory=dict)
    moved_at: str = ""
    etag: str = ""  # names this state for the next move; not stored


class Registry:
    """One registry. Nothing is made before the first `publish`."""

    def __init__(self, place: str) -> None:
        self.uri = storage.canonical(place)

    def publish(self, model: str) -> str:
        """Copy a model (folder, s3:// prefix or bundled) into the registry and return its entry; the same is stored once."""
        source = read_model(model)
        parsed = checkpoint.parse(*source)
        entry = f"{parsed.name}-{parsed.digest[:12]}"
        # The card last: without it the folder is no model.
        for name, data in ((WEIGHTS, source[2]), (CARD, source[1])):
            storage.write_whole(storage.below(self.uri, f"{entry}/{name}"), data)
        return entry

    def read(self, entry: str) -> tuple[Path, bytes, bytes]:
        """What `checkpoint.read` gives, of an entry here. Raises ModelError."""
        return read_folder(storage.below(self.uri, entry))

    def alias(self, name: str) -> Alias | None:
        """Where an alias points; None when there is no such."""
        if not ALIAS.fullmatch(name):
            raise RegistryError(f"alias {name!r}: lower-case letters, digits, dot, dash and underscore are accepted")
        found = storage.read_tagged(self._path(name))
        if found is None:
            return None
        try:
            return Alias(**{**json.loads(found[0]), "etag": found[1]})
        except (ValueError, TypeError) as error:
            raise RegistryError(f"{self._path(name)}: not an alias of this version ({error})") from error

    def require_moves(self) -> None:
        """StorageError where the registry's storage cannot be written or would let two moves overwrite each other."""
        if storage.is_s3(self.uri):
            s3.require_conditional_put(self.uri, replacing=True)

    def move(self, name: str, entry: str, figures: dict[str, Any], was: Alias | None) -> Alias:
        """Point an alias at an entry if it still is what `was` says (None: not there yet). Raises RegistryError, StorageError."""
        self.alias(name)
        self.require_moves()
        label = checkpoint.parse(*self.read(entry)).label
        moved = Alias(name, entry, label, figures, datetime.now(UTC).isoformat(timespec="seconds"))
        data = {key: value for key, value in asdict(moved).items() if key != "etag"}
        text = json.dumps(data, indent=2) + "\n"
        if not storage.write_if_unchanged(self._path(name), text.encode(), was.etag if was else None):
            raise RegistryError(f"{self.uri}@{name} was moved by someone else meanwhile; look at it and try again")
        return moved

    def _path(self, name: str) -> str:
        return f"{self.uri}/aliases/{name}.json"


def read_model(reference: str) -> tuple[Path, bytes, bytes]:
    """What `checkpoint.read` gives, of a bundled model, a model folder (local or s3://) or REGISTRY@ALIAS.

    Raises ModelError where there is no such model.
    """
    place, at, name = reference.rpartition("@")
    if at and not Path(reference).exists():
        found = Registry(place).alias(name)
        if found is None:
            raise ModelError(f"no model {reference}: the registry {place} has no alias {name}")
        return Registry(place).read(found.entry)
    return read_folder(reference) if storage.is_s3(reference) else checkpoint.read(reference)


def read_folder(uri: str) -> tuple[Path, bytes, bytes]:
    """A model folder on any storage. Raises ModelError."""
    if not storage.is_s3(uri):
        return checkpoint.read(storage.local_path(uri))
    try:
        return Path(uri), storage.read_versioned(f"{uri}/{CARD}")[0], storage.read_versioned(f"{uri}/{WEIGHTS}")[0]
    except OSError as error:
        raise ModelError(f"{uri}: cannot be read ({error}); a model folder has {WEIGHTS} and {CARD}") from error
