"""An ensemble: one model folder that holds several models of the same classes, weights and cards, and a rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load as load_tensors

from deeplab.files import Files
from deeplab.models import checkpoint
from deeplab.models.card import Card, CardMember, Rule
from deeplab.models.checkpoint import WEIGHTS_DIGEST, Model, ModelError


def save(place: str | Path | Files, name: str, sources: Sequence[tuple[Path, bytes, bytes]], rule: Rule) -> tuple[Model, ...]:
    """Copy models, each as `checkpoint.read` returns it, into one folder; returns them. Weights are copied bit by bit.

    Raises ModelError like `checkpoint.parse` and `checkpoint.write`, for fewer than two models, and for classes that differ in
    name or order, with the first difference. A member's own folder is no place for the ensemble.
    """
    if len(sources) < 2:
        raise ModelError(f"{place}: an ensemble of {len(sources)} models; two or more are accepted")
    if isinstance(place, str | Path) and any(Path(place).resolve() == folder.resolve() for folder, _, _ in sources):
        raise ModelError(f"{place} is one of the members, which would be lost; choose another folder")
    members = tuple(checkpoint.parse(*source) for source in sources)
    first = members[0]
    for member in members[1:]:
        checkpoint.require_same_classes(first.label, first.classes, member.label, member.classes)
    tensors = {f"{index}.{key}": value for index, source in enumerate(sources) for key, value in load_tensors(source[2]).items()}
    card = {
        "name": name,
        "ensemble": {"rule": rule, "members": [_entry(member) for member in members]},
        "classes": first.card["classes"],
    }
    checkpoint.write(place, tensors, card)
    return members


def _entry(member: Model) -> CardMember:
    """A member in the ensemble's card. The digest of its weights file goes: that file is not part of the ensemble."""
    card: Card = {**member.card}
    card.pop(WEIGHTS_DIGEST, None)  # type: ignore[misc]
    return CardMember(label=member.label, card=card)
