"""`deeplab export` as a person and a script meet it; the formats' own tests are tests/pipelines/exports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from pipelines.exports.formats import FORMATS
from tests.material import photo
from tests.pipelines.exports.exported import make_table, regions


@pytest.fixture
def results(tmp_path: Path) -> str:
    """A table of a photo, and of one that is gone."""
    here, gone = tmp_path / "photos" / "here.jpg", tmp_path / "photos" / "gone.jpg"
    here.parent.mkdir()
    here.write_bytes(photo(1))
    make_table(tmp_path / "results", {here: regions(60, 80, 3), gone: regions(60, 80, 3)})
    return str(tmp_path / "results")


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["export", *map(str, arguments)])
    return done.exit_code, done.stdout, " ".join(done.stderr.split())


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_explained_and_exports_or_says_why_not(results: str, tmp_path: Path, form: str) -> None:
    page = run("--help")[1]
    assert FORMATS[form].line in page
    code, out, _ = run(results, tmp_path / "out", "--format", form, "--json")
    summary = json.loads(out)
    assert (summary["format"], summary["folder"], summary["model"]) == (form, str(tmp_path / "out"), "m@000000000000")
    needs_photo = form in ("overlay", "geotiff", "huggingface")
    placed = form in ("geojson", "geoparquet")  # a JPEG has no georeference
    assert summary["images"] == (0 if placed else 1 if needs_photo else 2)
    assert summary["left_out"] == len(summary["skipped"]) == 2 - summary["images"]
    assert code == (1 if placed else 0)
    written = [path for path in (tmp_path / "out").rglob("[!.]*") if path.is_file() and path.name != "classes.txt"]
    assert len(written) == summary["files"]


def test_what_is_left_out_is_named_with_the_reason(results: str, tmp_path: Path) -> None:
    code, out, errors = run(results, tmp_path / "out", "-f", "overlay")
    assert (code, out.split()[:2]) == (0, ["1", "file"])
    assert "gone.jpg:thephotocannotberead" in errors.replace(" ", "")  # lines are as wide as the terminal


def test_an_unknown_format_is_wrong_usage(results: str, tmp_path: Path) -> None:
    code, _, errors = run(results, tmp_path / "out", "--format", "bmp")
    assert code == 2 and "coco-panoptic" in errors
