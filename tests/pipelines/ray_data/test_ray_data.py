"""The Python face and the stages in a Ray Data pipeline of one's own: the same masks as the rows of a run of `segment`."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

import deeplab
from deeplab import masks
from pipelines.options import SegmentOptions
from pipelines.ray_data import Scorer, Segmenter, read_results, refine, segment
from pipelines.ray_data.stages import MASK_COLUMNS, BatchError
from pipelines.segment import run
from pipelines.table.results_table import ResultsTable
from tests.material import EXAMPLES, make_archive, make_results, photo

pytestmark = pytest.mark.usefixtures("running_ray", "one_thread")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As many threads as a worker of `segment` has: sums in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_archive(tmp_path_factory.mktemp("photos"), 6)
    (folder / "broken.jpg").write_bytes(photo(0)[:300])
    (folder / "empty.jpg").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def table(archive: Path, model: Path, running_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results table of a run over the archive."""
    results = tmp_path_factory.mktemp("table") / "results"
    run.segment(SegmentOptions(archive=str(archive), results=str(results), model=str(model), max_error_rate=1.0))
    return results


@pytest.fixture(scope="module")
def rows(table: Path) -> dict[str, dict[str, Any]]:
    """Its rows by path."""
    found = ResultsTable.open(str(table)).dataset().to_table().to_pylist()
    return {row["uri"].removeprefix("file://"): row for row in found}


@pytest.fixture(scope="module")
def photos(rows: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Parquet files of anyone's own with the photos of the archive, and a photo that is null."""
    folder = tmp_path_factory.mktemp("parquet")
    names = sorted(rows)
    for part in (0, 1):
        chosen = [*names[part::2], *["nothing"] * part]
        data = [Path(name).read_bytes() if name != "nothing" else None for name in chosen]
        pq.write_table(pa.table({"photo": pa.array(data, pa.binary()), "name": chosen}), folder / f"{part}.parquet")
    return str(folder)


def test_masks_in_python_are_those_of_the_table(rows: dict[str, dict[str, Any]], model: Path) -> None:
    segmenter = deeplab.load(model)
    names = sorted(rows)
    for name, found in zip(names, segmenter.segment(names), strict=True):
        row = rows[name]
        assert found.name == name and found.error == row["error"]
        if isinstance(found, deeplab.Mask):
            assert found.png() == row["mask"]
            assert np.array_equal(found.labels, masks.decode_png(row["mask"]))
            assert (found.confidence, found.class_pixels) == (pytest.approx(row["confidence"], abs=1e-7), dict(row["class_pixels"]))
            assert (found.scored, found.refined, found.model) == (row["scored"], row["refined"], row["model"])
            assert np.array_equal(segmenter.segment(name).labels, found.labels)
    assert {row["status"] for row in rows.values()} == {"ok", "error"}


def test_all_stages_in_a_task_and_the_crf_as_a_stage_of_its_own_add_the_columns_of_the_table(
    photos: str, rows: dict[str, dict[str, Any]], model: Path
) -> None:
    chosen = {"model": str(model), "image": "photo"}
    actor = {"compute": ray.data.ActorPoolStrategy(size=1), "batch_format": "pyarrow"}
    dataset = ray.data.read_parquet(photos)
    dataset = dataset.map_batches(segment, fn_kwargs=chosen | {"prefix": "task_"}, batch_size=3, batch_format="pyarrow")
    dataset = dataset.map_batches(Scorer, fn_constructor_kwargs=chosen, batch_size=5, **actor)
    found = dataset.map_batches(refine, fn_kwargs=chosen, batch_size=2, batch_format="pyarrow").take_all()
    by_name = {row["name"]: row for row in found}
    assert len(by_name) == len(found) == len(rows) + 1
    nothing = by_name.pop("nothing")
    for prefix in ("task_", ""):
        assert nothing[f"{prefix}error"] == "read: the image's bytes are null"
        for name, row in by_name.items():
            masks_of = {column: row[prefix + column] for column in MASK_COLUMNS}
            assert masks_of == {column: rows[name][column] for column in MASK_COLUMNS}
    assert {row["photo"] for row in by_name.values()} == {Path(name).read_bytes() for name in rows}


def test_options_prefix_and_every_batch_format(model: Path) -> None:
    batch = pa.table({"bytes": pa.array([photo(1), b"x"], pa.binary()), "mask": ["a", "b"]})
    chosen: dict[str, Any] = {"model": str(model), "prefix": "tiny_", "crf": False, "scales": [0.5, 1.0]}
    whole = segment(batch, **chosen)
    assert whole.column_names == ["bytes", "mask", *(f"tiny_{name}" for name in MASK_COLUMNS)]
    assert whole["tiny_refined"].to_pylist() == [None, None]
    assert "scales0.5/1" in whole["tiny_scored"][0].as_py()
    assert whole["tiny_mask"][0].as_py() == deeplab.load(model).segment(photo(1), crf=False, scales=[0.5, 1.0]).png()
    columns = {name: np.array(batch[name].to_pylist(), dtype=object) for name in batch.column_names}
    for other in (batch.to_pandas(), columns):
        assert segment(other, **chosen).select(whole.column_names[2:]).equals(whole.select(whole.column_names[2:]))
    halves = [refine(Scorer(**chosen)(part), **chosen) for part in (batch, batch.slice(0, 0))]
    assert halves[0].equals(whole) and halves[1].equals(segment(batch.slice(0, 0), **chosen))
    with pytest.raises(BatchError, match="already has the columns mask; prefix="):
        segment(batch, model=str(model))
    with pytest.raises(BatchError, match="no column 'photo' of image bytes; the batch has bytes, mask"):
        segment(batch, model=str(model), image="photo")
    with pytest.raises(BatchError, match="'mask' is string: the bytes"):
        segment(batch, model=str(model), image="mask")
    with pytest.raises(BatchError, match="a Scorer comes before it"):
        refine(batch, **chosen)
    with pytest.raises(TypeError, match="no option colour"):
        Segmenter(str(model), colour=1)


def test_a_results_table_is_a_dataset_of_label_maps(table: Path, rows: dict[str, dict[str, Any]]) -> None:
    found = read_results(str(table))
    good = {name: row for name, row in rows.items() if row["status"] == "ok"}
    batches = list(found.iter_batches(batch_size=4, batch_format="numpy"))
    read = {
        batch["uri"][i].removeprefix("file://"): {name: batch[name][i] for name in batch}
        for batch in batches
        for i in range(len(batch["uri"]))
    }
    assert set(read) == set(good)
    for name, row in read.items():
        assert row["mask"].dtype == np.uint8
        assert np.array_equal(row["mask"], masks.decode_png(good[name]["mask"]))
        assert dict(row["class_pixels"]) == dict(good[name]["class_pixels"])


def test_of_an_image_with_two_versions_the_last_mask_is_read(tmp_path: Path) -> None:
    from datetime import timedelta

    from tests.material import START

    make_results(tmp_path, photos=3, errors=1)
    results = make_results(tmp_path, photos=3, errors=1, run="run-2", start=START + timedelta(days=1))
    versions = [row["version"] for row in read_results(str(results), model="pets").take_all()]
    assert versions == ["run-2-v"] * 3
    early = read_results(str(results), version=2).take_all()
    assert {row["version"] for row in early} == {"run-1-v"}


def test_the_example_reads_photos_and_writes_masks(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = {"name": ["a", "b", "c"], "bytes": pa.array([photo(1), photo(2), b"no photo"], pa.binary())}
    pq.write_table(pa.table(photos), tmp_path / "photos.parquet")
    main = runpy.run_path(str(EXAMPLES.parent / "ray_data.py"), run_name="example")["main"]
    main(str(tmp_path / "photos.parquet"), str(tmp_path / "masks"), str(model))
    assert capsys.readouterr().out.endswith("masks: 3 photos with their masks\n")
    found = pq.read_table(tmp_path / "masks").sort_by("name").to_pylist()
    segmenter = deeplab.load(model)
    for row, data in zip(found, (photo(1), photo(2)), strict=False):
        mask = segmenter.segment(data)
        assert row["mask"] == mask.png() and row["cat"] == mask.class_pixels.get("cat", 0) / mask.labels.size
    assert found[2]["error"].startswith("decode: not an image") and found[2]["cat"] is None
