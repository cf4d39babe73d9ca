"""`deeplab benchmark`, as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from tests.material import EXAMPLES, make_model

runner = CliRunner()
QUICK = ["-n", "2", "--rounds", "1", "--device", "cpu"]


def test_stages_bound_and_estimate_are_printed_and_told_to_scripts(tmp_path: Path) -> None:
    model = str(make_model(tmp_path / "tiny"))
    asked = ["benchmark", model, *QUICK, "--photos", str(EXAMPLES), "--cores", "8", "--images", "3600", "--hourly-price", "2"]
    page = runner.invoke(app, asked)
    assert page.exit_code == 0, page.output
    for words in ("decode", "score", "refine", "encode", "GFLOP/s", "on 8 cores", "bound by", "3,600 images", "hourly price"):
        assert words in page.output
    told = json.loads(runner.invoke(app, [*asked, "--json"]).stdout)
    rate = 8 / sum(told["seconds"].values())
    assert told["estimate"]["images_per_second"] == pytest.approx(rate)
    assert told["estimate"]["cost"] == pytest.approx(2 * 3600 / rate / 3600)
    assert 0 < told["utilisation"] < 2


def test_an_architecture_is_measured_with_random_weights_at_the_size_that_was_asked_for() -> None:
    done = runner.invoke(
        app, ["benchmark", "mobilenet-v2-aspp", *QUICK, "--size", "65x97", "--no-crf", "--scales", "0.5,1", "--json"]
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["pixels"] == 65 * 97 and told["model"] == "mobilenet-v2-aspp, 21 classes, random weights"


@pytest.mark.parametrize(
    ("asked", "code", "says"),
    [
        (["no-such-model"], 1, "give a model folder or one of the bundled models"),
        (["--size", "375"], 2, "HEIGHTxWIDTH such as 375x500"),
        (["--scales", "a"], 2, "numbers separated by"),
        (["--scales", "9"], 2, "at least 0.1 and at most 4"),
        (["--crf-params", "nope"], 2, "nope"),
        (["--device", "tpu"], 2, "'auto', 'cpu' or 'cuda'"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_what_is_accepted(asked: list[str], code: int, says: str) -> None:
    done = runner.invoke(app, ["benchmark", *asked, *([] if "--device" in asked else QUICK)])
    said = done.output + (str(done.exception) if code == 1 else "")  # a UserError becomes its line in flows.cli.main
    assert done.exit_code == code and says in " ".join(said.replace("│", "").split())


def test_a_folder_without_photos_and_a_missing_gpu_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "holds no photos" in str(runner.invoke(app, ["benchmark", "--photos", str(tmp_path)]).exception)
    assert "torch finds no GPU here" in str(runner.invoke(app, ["benchmark", "--device", "cuda"]).exception)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    assert "a photo cannot be used" in str(runner.invoke(app, ["benchmark", *QUICK, "--photos", str(tmp_path)]).exception)
