"""Broken images through the whole pipeline: each is exactly one row."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.options import SegmentOptions
from pipelines.segment.run import segment
from pipelines.table.results_table import ResultsTable
from tests.mutations import seeds, variants

pytestmark = pytest.mark.usefixtures("running_ray")


def segmented(archive: Path, results: Path, model: Path) -> list[dict[str, object]]:
    """Rows of a run over everything in `archive`, whatever its name; fails unless each file has one."""
    common = {"crf": False, "max_error_rate": 1.0, "include": ("*",), "max_pixels": 300_000}  # large ones only take time here
    options = SegmentOptions(archive=str(archive), results=str(results), model=str(model), **common)  # type: ignore[arg-type]
    files = {path.as_uri() for path in archive.rglob("*") if path.is_file()}
    summary = segment(options)
    rows = ResultsTable.open(str(results)).dataset().to_table().to_pylist()
    assert summary.images == len(rows) == len(files)
    assert {row["uri"] for row in rows} == files
    return rows


def test_every_broken_image_is_one_row(tmp_path: Path, model: Path) -> None:
    archive = tmp_path / "photos"
    archive.mkdir()
    valid = seeds()
    for name, data in [*variants(300, seed=2), *valid.items()]:
        (archive / name).write_bytes(data)
    rows = {str(row["uri"]).rsplit("/", 1)[-1]: row for row in segmented(archive, tmp_path / "results", model)}
    assert all(rows[name]["status"] == "ok" for name in valid)
    failed = [row for row in rows.values() if row["status"] == "error"]
    assert len(failed) > 100
    for row in failed:
        assert str(row["error"]).startswith("decode: ")
        assert len(str(row["error"]).splitlines()) == 1
        assert row["mask"] is None


def test_every_odd_file_is_one_row(tmp_path: Path, model: Path, shared: Path) -> None:
    rows = segmented(shared / "data" / "odd", tmp_path / "results", model)
    assert {row["status"] for row in rows} == {"ok", "error"}
