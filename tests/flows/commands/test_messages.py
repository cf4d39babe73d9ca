"""What commands say to a person: places that cannot be written, folders of another kind, counts, reasons, schedules."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deeplab.models import checkpoint
from flows.cli import app
from flows.commands.segment import print_summary
from flows.console.error_messages import message
from pipelines.segment.run import Summary
from tests.command_line import ROOT
from tests.material import make_dataset, make_model, photo
from tests.pipelines.exports.exported import LAND, make_table, regions

runner = CliRunner()


def deeplab(*arguments: object) -> Result:
    return runner.invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A table of one photo, a data set, two models, and a file where a folder would have to be."""
    root = tmp_path_factory.mktemp("places")
    (root / "photos").mkdir()
    (root / "photos" / "a.jpg").write_bytes(photo(1))
    make_table(root / "results", {root / "photos" / "a.jpg": regions(60, 80, 3)}, stale=False)
    make_dataset(root / "dataset", 2)
    (root / "file").write_text("not a folder")
    return {
        "photos": root / "photos",
        "results": root / "results",
        "dataset": root / "dataset",
        "one": make_model(root / "one"),
        "two": make_model(root / "two", 1),
        "nowhere": root / "file" / "folder",
    }


@pytest.mark.parametrize(
    "command",
    [
        "ensemble {one} {two} -o {nowhere}",
        "export {results} {nowhere}",
        "export {results} {nowhere} -f coco-rle",
        "show {results} -o {nowhere}/sheet.png",
        "report {results} -o {nowhere}",
        "pack {dataset} {nowhere}",
        "train {dataset} {nowhere} --steps 1",
        "segment {photos} {nowhere}",
    ],
)
def test_a_place_that_cannot_be_written_is_named_in_one_line_with_the_reason(places: dict[str, Path], command: str) -> None:
    done = deeplab(*command.format(**places).split())
    assert done.exit_code == 1 and done.exception is not None
    text = message(done.exception)
    assert str(places["nowhere"].parent) in text and "full text" not in text, text
    assert not re.search(r"\w+Error: |\n", text), text


def test_an_ensemble_never_takes_the_place_of_a_member(places: dict[str, Path]) -> None:
    before = checkpoint.read(places["two"])
    done = deeplab("ensemble", places["one"], places["two"], "-o", places["two"] / ".." / "two")
    assert "is one of the members" in str(done.exception) and checkpoint.read(places["two"]) == before


@pytest.mark.parametrize("command", ["ensemble resnet50-fcn {one} -o x", "evaluate resnet50-fcn {dataset}", "models resnet50-fcn"])
def test_an_architecture_in_place_of_a_model_is_said_to_be_one(places: dict[str, Path], command: str) -> None:
    done = deeplab(*command.format(**places).split())
    assert "no model resnet50-fcn: it is an architecture, which becomes a model by `deeplab train`" in str(done.exception)


def test_a_folder_of_something_else_is_not_recommended_for_a_table(places: dict[str, Path], tmp_path: Path) -> None:
    for command in ("status", "report", "verify", "vacuum"):
        refused = str(deeplab(command, places["photos"]).exception)
        assert "holds something else" in refused and "deeplab segment ARCHIVE" not in refused
        assert "deeplab segment ARCHIVE" in str(deeplab(command, tmp_path / "new").exception)


@pytest.mark.parametrize("command", ["segment", "run segment", "run refresh"])
def test_a_mistyped_archive_is_refused_before_anything_is_loaded_or_started(command: str) -> None:
    script = f"""
import sys
from flows.cli import app
try:
    app({[*command.split(), "photoss/", "results/"]}, standalone_mode=False)
except Exception as error:
    print(error, sorted({{"torch", "ray", "prefect"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.startswith("photoss/: no such folder or file") and done.stdout.strip().endswith("[]")


def test_one_is_not_many(places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = places["results"]
    commands = [
        ["status", results, "--archive", places["photos"]],
        ["show", results, "-o", tmp_path / "sheet.png"],
        ["export", results, tmp_path / "coco", "-f", "coco-rle"],
        ["report", results, "-o", tmp_path / "report"],
        ["verify", results, "--archive", places["photos"]],
        ["compact", results],
        ["vacuum", results],
        ["repair", results],
        ["pack", places["dataset"], tmp_path / "pack", "--splits", "val"],
        ["dataset", "check", places["dataset"]],
    ]
    lines = [line for command in commands for line in deeplab(*command).output.splitlines()]
    print_summary(Summary("r", "m", str(results), passed_over=1, outputs=1, made_otherwise=1, other_settings=["x"], already=1))
    print_summary(Summary("r", "m", str(results), elsewhere=1))
    lines += capsys.readouterr().out.splitlines()
    assert sum(bool(re.search(r"\b1 [a-z]+", line)) for line in lines) >= 12, lines
    assert [line for line in lines if re.search(r"(?<![\d.,])1 (images|files|photos|rows|pairs|sizes|folders)\b", line)] == []


@pytest.mark.parametrize("form", ["png", "geotiff"])
def test_masks_in_files_of_their_own_come_with_the_names_of_their_values(
    places: dict[str, Path], tmp_path: Path, form: str
) -> None:
    assert deeplab("export", places["results"], tmp_path, "-f", form).exit_code == 0
    assert (tmp_path / "classes.txt").read_text().splitlines() == list(LAND.names)
    (tmp_path / "classes.txt").write_text("ground\nsquare\n")
    refused = deeplab("export", places["results"], tmp_path, "-f", form)
    assert "names other classes" in str(refused.exception)
    assert (tmp_path / "classes.txt").read_text() == "ground\nsquare\n"


def test_a_reason_that_many_photos_share_is_said_once(tmp_path: Path) -> None:
    photos = {tmp_path / "photos" / f"{index}.jpg": regions(60, 80, 3) for index in range(4)}
    (tmp_path / "photos").mkdir()
    for index, path in enumerate(list(photos)[:3]):
        path.write_bytes(photo(index))
    make_table(tmp_path / "results", photos, stale=False)
    done = deeplab("export", tmp_path / "results", tmp_path / "out", "-f", "geojson")
    without, gone, last = (line for line in done.stderr.splitlines() if line.startswith(("left out", "error")))
    assert re.match(r"left out 3 images, such as file:.*: the photo cannot be used: it has no georeference", without)
    assert re.match(r"left out file:.*3\.jpg: the photo cannot be read", gone) and "no image could be exported" in last
    summary = json.loads(deeplab("export", tmp_path / "results", tmp_path / "out", "-f", "geojson", "--json").stdout)
    assert len(summary["skipped"]) == 4


@pytest.mark.parametrize(
    ("option", "text", "accepted"),
    [
        ("--cron", "every night", "minute, hour, day of the month, month and day of the week are accepted"),
        ("--cron", "0 3 * *", "minute, hour, day of the month"),
        ("--cron", "", "minute, hour, day of the month"),
        ("--rrule", "weekly", "FREQ=WEEKLY;BYDAY=MO"),
    ],
)
def test_a_bad_schedule_is_refused_with_a_good_one(option: str, text: str, accepted: str) -> None:
    done = deeplab("serve", "a", "r", option, text)
    said = " ".join(done.stderr.replace("│", " ").split())
    assert done.exit_code == 2 and option in said and accepted in said and repr(text) in said
    assert "Value error" not in said


def test_serving_says_when_the_next_run_is() -> None:
    from prefect.schedules import Schedule

    from flows.deployments import next_run
    from flows.segment import segment_archive

    def line(active: bool, **schedule: str | timedelta) -> str | None:
        return next_run(segment_archive.to_deployment("photos", schedules=[Schedule(**schedule, active=active)]))

    nightly = line(True, cron="0 3 * * *", timezone="Europe/Berlin")
    assert re.fullmatch(r"segment-archive/photos: next run: \d{4}-\d\d-\d\d 03:00:00 CES?T", nightly or "")
    weekly = line(False, rrule="FREQ=WEEKLY;BYDAY=MO;BYHOUR=5;BYMINUTE=0;BYSECOND=0", timezone="UTC")
    assert re.search(r"the schedule is off until --active, .* next run: \S+ 05:00:00 UTC", weekly or "")
    assert re.search(r"next run: \S+ \S+ UTC", line(True, interval=timedelta(hours=1)) or "")
    assert next_run(segment_archive.to_deployment("by hand")) is None
