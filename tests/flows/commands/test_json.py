"""What --json prints is JSON that every reader takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deeplab.evaluation.predictions import Evaluation
from flows import commands
from flows.commands.evaluate import _print as print_figures
from flows.console.terminal import print_json


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_figures_of_a_split_without_labelled_pixels_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    result = Evaluation.empty(2, (3,))
    result.add(np.full((4, 4), 255, np.uint8), np.zeros((4, 4), np.uint8))
    about = {"model": "m", "images": 1, "dataset": "d", "split": "val", "scored": "standard", "crf": None}
    summary = {**about, **result.summary(["ground", "square"])}
    print_json(summary)
    printed = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert printed["mean_iou"] is None and printed["pixel_accuracy"] is None
    assert printed["iou"] == {"ground": None, "square": None}
    assert printed["images"] == 1
    print_figures(summary)
    assert "nan" not in capsys.readouterr().out


def test_infinities_deep_within_are_null_and_all_else_stays(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"a": [1, 2.5, float("inf"), (float("-inf"), {"b": float("nan")})], "ü": "x", "none": None, "yes": True}
    print_json(value)
    expected = {"a": [1, 2.5, None, [None, {"b": None}]], "ü": "x", "none": None, "yes": True}
    assert json.loads(capsys.readouterr().out, parse_constant=refuse) == expected


def test_every_command_prints_its_json_by_the_one_function() -> None:
    sources = [path for folder in commands.__path__ for path in Path(folder).glob("*.py")]
    assert len(sources) > 8
    assert [path.name for path in sources if "json.dump" in path.read_text(encoding="utf-8")] == []
