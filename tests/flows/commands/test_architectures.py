"""`deeplab import-weights` and `deeplab models --all`, as a person runs them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from typer.testing import CliRunner

from deeplab.models import checkpoint
from deeplab.weights import WeightsError
from deeplab.weights.foreign_networks import OWN_SIZE
from flows.cli import app

runner = CliRunner()
PAGE = Path(__file__).parents[3] / "docs" / "family.md"


def printed(row: dict[str, Any]) -> list[str]:
    """A row of `models --all` as the page has it: parameters in millions, and no cell for a figure that the papers lack."""
    sizes = [f"{row['parameters'] / 1e6:.1f}", f"{row['gflop']:.0f}", str(row["field_of_view"] or "image")]
    figures = [f"{row[name]:.{digits}f}" for name, digits in (("val", 2), ("val_crf", 2), ("test", 1)) if row[name] is not None]
    return [row["name"], str(row["stride"]), *sizes, *figures]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    make = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large
    path = tmp_path_factory.mktemp("weights") / "theirs.pth"
    torch.save(make(weights=None, weights_backbone=None, num_classes=21, aux_loss=True).state_dict(), path)
    return path


def test_imported_weights_are_a_model_with_names_and_a_card(weights: Path, tmp_path: Path) -> None:
    done = runner.invoke(
        app, ["import-weights", str(weights), str(tmp_path / "voc"), "--family", "torchvision", "--licence", "BSD"]
    )
    assert done.exit_code == 0, done.output
    assert "mobilenet-v3-aspp-v3, 21 classes" in done.stdout
    assert "left out: aux_classifier.0.weight" in done.stdout
    model = checkpoint.load(tmp_path / "voc")
    assert model.classes.names[8] == "cat"
    assert model.card["data"]["licence"] == "BSD"
    assert model.card["init"] == "theirs.pth, family torchvision"
    assert model.network.geometry == OWN_SIZE
    assert model.card["geometry"]["padded"] is False
    assert model.at_stride(32).network.geometry == OWN_SIZE


def test_class_names_come_from_a_file_of_the_right_length(weights: Path, tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("\n".join(f"thing {i}" for i in range(21)))
    arguments = ["import-weights", str(weights), str(tmp_path / "mine"), "--family", "torchvision", "--classes", str(names)]
    assert runner.invoke(app, arguments).exit_code == 0
    assert checkpoint.load(tmp_path / "mine").classes.names[20] == "thing 20"
    names.write_text("one\ntwo\n")
    refused = runner.invoke(app, arguments)
    assert refused.exit_code == 2
    assert "2 different classes" in refused.stderr


def test_weights_of_another_family_leave_nothing_behind(weights: Path, tmp_path: Path) -> None:
    done = runner.invoke(app, ["import-weights", str(weights), str(tmp_path / "out"), "--family", "kazuto"])
    assert done.exit_code == 1
    assert isinstance(done.exception, WeightsError)
    assert not (tmp_path / "out").exists()
    assert runner.invoke(app, ["import-weights", str(weights), str(tmp_path / "out"), "--family", "x"]).exit_code == 2


def test_all_architectures_are_listed_with_size_and_figures_in_the_command_and_its_page() -> None:
    done = runner.invoke(app, ["models", "--all", "--json"])
    assert done.exit_code == 0, done.output
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    table = re.findall(r"^    (\S+ +\d+ +\d+\.\d .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [line.split() for line in table] == [printed(row) for row in rows.values()]
    assert rows["vgg16-largefov"]["parameters"] == 20_505_429
    assert (rows["vgg16-aspp-l"]["val"], rows["vgg16-aspp-l"]["val_crf"]) == (68.96, 71.57)
    assert rows["resnet101-aspp"]["gflop"] > rows["resnet50-aspp"]["gflop"] > rows["mobilenet-v2-aspp"]["gflop"]


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    done = runner.invoke(app, ["train", "examples/pets", "out", "--preset", "vgg16-asppl"])
    assert done.exit_code == 2
    assert "nearest vgg16-aspp-l" in " ".join(done.stderr.split())
