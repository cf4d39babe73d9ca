"""The model registry: aliases move by compare-and-swap, entries never change, and every reference finds its model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deeplab.models import checkpoint
from deeplab.models.checkpoint import ModelError
from pipelines.storage.model_registry import Registry, RegistryError, read_model
from tests.material import make_model


def label(reference: object) -> str:
    return checkpoint.parse(*read_model(str(reference))).label


def test_an_alias_names_a_published_model_wherever_a_model_is_taken(tmp_path: Path, model: Path) -> None:
    registry = Registry(str(tmp_path / "registry"))
    entry = registry.publish(str(model))
    assert registry.publish(str(model)) == entry
    assert registry.alias("production") is None
    moved = registry.move("production", entry, {"mean_iou": 0.5}, None)
    assert label(f"{tmp_path}/registry@production") == label(model) == moved.label
    found = registry.alias("production")
    assert found is not None
    assert (found.entry, found.figures) == (entry, {"mean_iou": 0.5})
    assert label("pets").startswith("pets@")
    with pytest.raises(ModelError, match="has no alias staging"):
        read_model(f"{tmp_path}/registry@staging")
    with pytest.raises(RegistryError, match="lower-case letters"):
        read_model(f"{tmp_path}/registry@../x")


def test_of_many_who_move_an_alias_at_once_one_wins_and_the_others_are_told(tmp_path: Path, model: Path) -> None:
    place = str(tmp_path / "registry")
    registry = Registry(place)
    first = registry.publish(str(model))
    others = [registry.publish(str(make_model(tmp_path / f"m{seed}", seed, f"m{seed}"))) for seed in range(1, 5)]
    was = registry.move("production", first, {}, None)

    def move(entry: str) -> str:
        try:
            Registry(place).move("production", entry, {}, registry_state)
        except RegistryError as error:
            return str(error)
        return "moved"

    registry_state = registry.alias("production")
    assert registry_state is not None
    assert registry_state.label == was.label
    with ThreadPoolExecutor(4) as pool:
        told = sorted(pool.map(move, others), key=lambda answer: answer != "moved")
    assert told[0] == "moved"
    assert all("was moved by someone else" in answer for answer in told[1:])
    with pytest.raises(RegistryError, match="was moved by someone else"):
        registry.move("production", first, {}, None)


def test_a_registry_on_s3_moves_aliases_by_conditional_puts_and_takes_models_from_s3(s3: str, model: Path) -> None:
    from pipelines.storage import filesystems

    for name in (checkpoint.WEIGHTS, checkpoint.CARD):
        filesystems.write_whole(f"{s3}/trained/{name}", (model / name).read_bytes())
    registry = Registry(f"{s3}/registry")
    entry = registry.publish(f"{s3}/trained")
    assert entry == registry.publish(str(model))
    stale = registry.move("production", entry, {}, None)
    registry.move("production", entry, {"mean_iou": 0.6}, registry.alias("production"))
    for was in (None, registry.alias("staging"), stale):
        with pytest.raises(RegistryError, match="was moved by someone else"):
            registry.move("production", entry, {"mean_iou": 0.1}, was)
    assert registry.alias("production").figures == {"mean_iou": 0.6}  # type: ignore[union-attr]
    assert label(f"{s3}/registry@production") == label(model)
