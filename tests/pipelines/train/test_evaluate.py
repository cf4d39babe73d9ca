"""Evaluation and the CRF search over Ray: the same figures as in one process, whoever counts, and of stored masks, too."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from deeplab.data.datasets import LabelledFolder
from deeplab.data.layouts import DatasetError
from deeplab.models import checkpoint
from pipelines.options import EvaluateOptions, SegmentOptions, TuneOptions
from pipelines.segment.run import begin, segment, task_of
from pipelines.table.table_errors import ResultsError
from pipelines.train import packed_datasets
from pipelines.train.crf_search import tune
from pipelines.train.evaluation import evaluate
from tests.material import EXAMPLES, make_dataset, make_model

FIGURES = ("mean_iou", "iou", "confusion", "pixels", "trimap")


def options(model: Path | str, **given: Any) -> EvaluateOptions:
    return EvaluateOptions(**({"model": str(model), "dataset": str(EXAMPLES), "device": "cpu"} | given))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, model: Path, running_ray: None) -> Path:
    """The example photos segmented with a small random model."""
    results = tmp_path_factory.mktemp("table") / "results"
    segment(SegmentOptions(archive=str(EXAMPLES / "images"), results=str(results), model=str(model), scales=(1.0,)))
    return results


def test_workers_count_what_one_process_counts(model: Path, running_ray: None) -> None:
    told: list[tuple[int, int]] = []
    here = evaluate(options(model, crf=True, trimap=(2, 5)), lambda done, total: told.append((done, total)))
    spread_out = evaluate(options(model, crf=True, trimap=(2, 5), workers=2))
    assert spread_out == here
    assert told[-1] == (6, 6)
    assert (here["images"], here["split"], set(here["iou"])) == (6, "val", {"background", "cat", "dog"})
    plain = evaluate(options(model, trimap=(2, 5)))
    assert here["before_crf"]["iou"] == plain["iou"]
    assert here["before_crf"]["trimap"] == plain["trimap"]
    json.dumps(here, allow_nan=False)


def test_stored_masks_score_what_the_model_scores(model: Path, table: Path, tmp_path: Path) -> None:
    expected = evaluate(options(model, crf=True, trimap=(3,)))
    found = evaluate(options(table, trimap=(3,)))
    assert {key: found[key] for key in FIGURES} == {key: expected[key] for key in FIGURES}
    assert (found["model"], found["without_mask"]) == (expected["model"], 0)
    assert expected["crf"] == f"fast {found['crf']}" or expected["crf"] == found["crf"]
    assert evaluate(options(table, trimap=(3,), workers=2))["confusion"] == expected["confusion"]
    # A pack has no URIs of its own: its pairs are known by name.
    packed_datasets.pack([LabelledFolder(EXAMPLES, "val")], str(tmp_path / "packed"))
    assert evaluate(options(table, dataset=str(tmp_path / "packed")))["confusion"] == expected["confusion"]


def test_no_row_is_refused_and_an_error_row_counts_as_missed(model: Path, tmp_path: Path, running_ray: None) -> None:
    data = tmp_path / "pets"
    shutil.copytree(EXAMPLES, data)
    stems = (data / "val.txt").read_text().split()
    broken = data / "images" / f"{stems[0]}.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(b"not an image")
    listed = tmp_path / "some.txt"
    listed.write_text("".join(f"{data / 'images' / stem}.jpg\n" for stem in stems[:-1]))
    made = SegmentOptions(archive=str(listed), results=str(tmp_path / "r"), model=str(model), scales=(1.0,), max_error_rate=1.0)
    segment(made)
    broken.write_bytes(whole)
    with pytest.raises(ResultsError, match=rf"1 of 6 images of val have no row of tiny@.*: {stems[-1]}; segment them first"):
        evaluate(options(tmp_path / "r", dataset=str(data)))
    (data / "val.txt").write_text("\n".join(stems[:-1]) + "\n")
    found = evaluate(options(tmp_path / "r", dataset=str(data)))
    assert found["without_mask"] == 1
    (data / "val.txt").write_text("\n".join(stems[1:-1]) + "\n")
    rest = evaluate(options(tmp_path / "r", dataset=str(data)))
    assert found["pixels"] > rest["pixels"]
    assert found["confusion"] == rest["confusion"]
    assert found["mean_iou"] < rest["mean_iou"]


def test_what_does_not_fit_together_is_named(model: Path, table: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "squares")
    for source in (model, table):
        with pytest.raises(DatasetError, match=r"classes ground, square; tiny@\w+ knows background, cat, dog"):
            evaluate(options(source, dataset=str(other)))
    with pytest.raises(checkpoint.ModelError, match="no CRF parameters; `deeplab tune-crf` finds"):
        evaluate(options(model, crf=True, crf_params="card"))
    with pytest.raises(ResultsError, match="no rows of model what; there are: tiny@"):
        evaluate(options(table, rows_of="what"))


def test_the_tuned_crf_is_the_best_of_its_candidates_and_lies_in_the_card(tmp_path: Path, running_ray: None) -> None:
    folder = make_model(tmp_path / "mine")
    given = TuneOptions(model=str(folder), dataset=str(EXAMPLES), images=2, rounds=0, device="cpu", write=False)
    here = tune(given)
    there = tune(given.model_copy(update={"workers": 2}))
    assert there == here
    assert "crf" not in checkpoint.read_card(folder)
    before = checkpoint.load(folder).label
    written = tune(given.model_copy(update={"write": True, "rounds": 1}))
    assert written["mean_iou"] >= here["mean_iou"]
    assert written["searched_on"]["candidates"] > here["searched_on"]["candidates"] == 128
    label = checkpoint.load(folder).label
    assert label == written["model"] != before
    scored = evaluate(options(folder, crf=True, crf_params="card"))
    assert scored["crf"] == f"fast {written['crf']}"
    chosen = SegmentOptions(archive=".", results=str(tmp_path / "r"), model=str(folder), crf_params="card")
    used = task_of(begin(chosen)).refinement
    assert used is not None
    assert asdict(used.parameters) == written["parameters"]
    with pytest.raises(checkpoint.ModelError, match=r"pets is bundled .*--no-write"):
        tune(given.model_copy(update={"model": "pets", "write": True}))
