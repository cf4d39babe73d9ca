"""The command line as a person meets it: help, usage errors, reports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from pycocotools import mask as coco

from deeplab import masks
from deeplab.classes import PETS
from deeplab.models import checkpoint
from pipelines.options import SegmentOptions
from pipelines.segment.run import segment
from pipelines.table.results_table import ResultsTable
from tests.command_line import ROOT, deeplab
from tests.material import EXAMPLES, make_dataset, make_model


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, running_ray: None) -> Path:
    """A table of six example photos and one broken file, with the masks of a small random model."""
    root = tmp_path_factory.mktemp("cli")
    photos = root / "photos"
    (photos / "sub").mkdir(parents=True)
    for index, path in enumerate(sorted((EXAMPLES / "images").glob("*.jpg"))[:6]):
        (photos / ("sub" if index % 2 else "") / path.name).write_bytes(path.read_bytes())
    (photos / "broken.jpg").write_bytes(b"not an image")
    model = make_model(root / "tiny")
    places = {"archive": str(photos), "results": str(root / "results"), "model": str(model)}
    segment(SegmentOptions(**places, scales=(1.0,), max_error_rate=1.0))
    return root / "results"


def test_help_teaches_the_commands_and_the_exit_codes() -> None:
    """In a process of its own, as a person starts it."""
    page = subprocess.run([sys.executable, "-m", "flows.cli", "--help"], capture_output=True, text=True, cwd=ROOT, check=True)
    for word in ("segment", "status", "export", "show", "train", "evaluate", "tune-crf", "models", "Exit codes"):
        assert word in page.stdout
    assert "Exactly one row per image" in deeplab("segment", "--help").stdout


def test_help_and_completion_wait_for_no_heavy_import_and_work_where_a_package_is_missing() -> None:
    """`deeplab doctor` has to start where Ray or DuckDB cannot be imported."""
    heavy = ("torch", "ray", "prefect", "pyarrow", "pandas", "duckdb", "deltalake", "boto3")
    script = f"import sys, flows.cli; print(sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_the_bare_command_greets_with_three_things_that_can_be_typed_as_they_stand() -> None:
    done = deeplab()
    assert (done.returncode, done.stderr) == (0, "")
    commands = [line.strip().split("  ")[0] for line in done.stdout.splitlines() if line.startswith("  deeplab ")]
    assert commands[0] == "deeplab segment examples/photos results/" and len(commands) == 3
    assert max(map(len, done.stdout.splitlines())) <= 80
    for command in commands:
        assert deeplab(command.split()[1], "--help").returncode == 0
    assert deeplab("--version").stdout.startswith("deeplab ")


def test_a_shell_completes_commands_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_DEEPLAB_COMPLETE", "complete_bash")
    for typed, expected in (("deeplab se", "segment"), ("deeplab segment --comm", "--commit-every")):
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
        completions = deeplab().stdout.split()
        assert expected in completions and "images" not in completions  # nothing but completions


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["segment", "nowhere", "out"], 1, "no such folder or file"),
        (["segment", "examples/pets/images", "out", "--model", "nothing"], 1, "no model nothing"),
        (["segment", "examples/pets/images", "out", "--scales", "big"], 2, "--scales: Input should be a valid number"),
        (["segment", "examples/pets/images", "out", "--tile", "5"], 2, "--tile"),
        (["segment", "examples/pets/images", "out", "--crf-params", "x"], 2, "--crf-params"),
        (["segment", "examples/pets/images", "README.md"], 1, "holds something other than a results table"),
        (["status", "nowhere"], 1, "no results table here"),
        (["show", "nowhere", "-o", "sheet.txt"], 2, ".png or .jpg"),
        (["evaluate", "pets", "nowhere"], 1, "no such folder"),
        (["evaluate", "pets", "examples/pets", "--split", "test"], 1, "splits here: train, val"),
        (["evaluate", "pets", "examples/pets", "--trimap", "wide"], 2, "--trimap: Input should be a valid integer"),
        (["tune-crf", "pets", "examples/pets"], 1, "pets is bundled and never changes"),
        (["quantize", "pets", "examples/pets/images"], 1, "pets is bundled and never changes: -o OUT writes a copy"),
        (["train", "examples/pets", "out", "--preset", "x"], 2, "finetune"),
        (["run", "train", "examples/pets", "out", "--crop", "3"], 2, "--crop"),
        (["models", "nothing"], 1, "no model nothing"),
        (["bogus"], 2, "No such command"),
    ],
)
def test_wrong_use_is_one_clear_message_and_an_exit_code(arguments: list[str], code: int, message: str) -> None:
    done = deeplab(*arguments)
    assert done.returncode == code, done.stderr
    assert message in " ".join((done.stderr + done.stdout).split())
    assert "Traceback" not in done.stderr
    assert not (ROOT / "out").exists()


def test_status_counts_rows_reasons_and_what_is_pending(results: Path) -> None:
    found = json.loads(deeplab("status", results, "--archive", results.parent / "photos", "--json").stdout)
    (model,) = found["models"]
    assert (model["ok"], model["errors"]) == (6, 1)
    assert list(model["errors_by_reason"].values()) == [1]
    assert found["archive"]["pending"] == 0
    assert "6" in deeplab("status", results).stdout


def test_show_writes_a_sheet_of_photos_and_overlays(results: Path, tmp_path: Path) -> None:
    done = deeplab("show", results, "-n", 4, "-o", tmp_path / "sheet.png")
    assert done.returncode == 0, done.stderr
    assert "4 photos" in done.stdout
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 800
        assert sheet.height > 400


def test_exported_masks_keep_names_folders_and_palette(results: Path, tmp_path: Path) -> None:
    done = deeplab("export", results, tmp_path / "masks")
    assert done.returncode == 0, done.stderr
    photos = results.parent / "photos"
    expected = {path.relative_to(photos).with_suffix(".png") for path in photos.rglob("*.jpg") if path.name != "broken.jpg"}
    assert {path.relative_to(tmp_path / "masks") for path in (tmp_path / "masks").rglob("*.png")} == expected
    with Image.open(tmp_path / "masks" / sorted(expected)[0]) as mask:
        assert mask.mode == "P"
        assert mask.getpalette()[:9] == [0, 0, 0, 64, 0, 0, 64, 0, 128]  # type: ignore[index]


def test_exported_overlays_are_photos_of_the_same_size(results: Path, tmp_path: Path) -> None:
    assert deeplab("export", results, tmp_path / "over", "--format", "overlay").returncode == 0
    for path in (tmp_path / "over").rglob("*.jpg"):
        with Image.open(path) as made, Image.open(results.parent / "photos" / path.relative_to(tmp_path / "over")) as photo:
            assert made.size == photo.size


def test_exported_coco_rle_decodes_to_the_same_masks(results: Path, tmp_path: Path) -> None:
    assert deeplab("export", results, tmp_path / "coco", "--format", "coco-rle").returncode == 0
    data = json.loads((tmp_path / "coco" / "coco.json").read_text())
    stored = {row["uri"]: row["mask"] for row in ResultsTable.open(str(results)).dataset().to_table().to_pylist() if row["mask"]}
    assert len(data["images"]) == 6
    for image in data["images"]:
        uri = (results.parent / "photos" / image["file_name"]).as_uri()
        labels = masks.decode_png(stored[uri])
        seen = labels * 0
        for annotation in (a for a in data["annotations"] if a["image_id"] == image["id"]):
            seen[coco.decode(annotation["segmentation"]).astype(bool)] = annotation["category_id"]
        assert (seen == labels).all()


def test_training_writes_a_model_that_segments_and_evaluates(tmp_path: Path) -> None:
    data, init, trained = make_dataset(tmp_path / "data", classes=PETS.names), make_model(tmp_path / "start"), tmp_path / "mine"
    options = ("--steps", 2, "--batch-size", 2, "--crop", 65, "--loaders", 0, "--licence", "CC0")
    done = deeplab("train", data, trained, "--init", init, *options)
    assert done.returncode == 0, done.stderr
    card = checkpoint.read_card(trained)
    assert (card["name"], card["data"]["licence"], card["training"]["steps"]) == ("mine", "CC0", 2)
    figures = tmp_path / "figures"
    scored = deeplab("evaluate", trained, data, "--split", "train", "--trimap", "3,9", "--crf", "--plots", figures, "--json")
    assert scored.returncode == 0, scored.stderr
    summary = json.loads(scored.stdout)
    assert set(summary["iou"]) == {"background", "cat", "dog"}
    assert summary["images"] == 6
    assert set(summary["trimap"]) == set(summary["before_crf"]["trimap"]) == {"3", "9"}
    assert json.loads((figures / "evaluation.json").read_text()) == summary
    for name in ("trimap.png", "confusion.png"):
        with Image.open(figures / name) as picture:
            assert picture.width > 300
    assert card["metrics"]["validation"]["split"] == "val"


def test_the_bundled_model_is_listed_with_its_card() -> None:
    listed = json.loads(deeplab("models", "--json").stdout)
    card = listed["models"]["pets"]
    assert "CC BY-SA" in card["data"]["licence"]
    assert len(json.loads(deeplab("models", "pets").stdout)["digest"]) == 64


def test_a_data_set_is_checked_pair_by_pair_and_a_broken_one_is_not_trained_on(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    sound = deeplab("dataset", "check", data, "--sheet", tmp_path / "sheet.png")
    assert sound.returncode == 0, sound.stderr
    assert "6 pairs, 0 broken" in " ".join(sound.stdout.split())
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 800
    (data / "labels" / "picture_3.png").write_bytes(b"x")
    exif = Image.Exif()
    exif[274] = 3
    turned = next((data / "images").glob("picture_2.*"))
    Image.open(turned).save(turned, exif=exif)
    broken = deeplab("dataset", "check", data, "--json")
    assert broken.returncode == 1
    found = json.loads(broken.stdout)[0]
    assert (list(found["broken"]), list(found["doubtful"])) == (["picture_3"], ["picture_2"])
    refused = deeplab("train", data, tmp_path / "out", "--device", "cpu")
    assert refused.returncode == 1
    assert "1 of 6 pairs of train are broken" in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "out").exists()
