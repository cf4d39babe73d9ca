"""Large images on a real Ray: read by rows, the same mask as decoded whole, and one row each whatever is wrong with them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from deeplab import masks
from deeplab.images import preview
from deeplab.images.decoding import decode
from pipelines.exports import export
from pipelines.exports.sample_sheet import show
from pipelines.options import SegmentOptions
from pipelines.segment import plan, stages
from pipelines.segment import run as segment
from pipelines.storage import filesystems
from pipelines.table.results_table import ResultsTable
from pipelines.table.schema import FILE_SCHEMA
from pipelines.upkeep.verification import verify
from tests.material import EXAMPLES, photo

rasterio = pytest.importorskip("rasterio", reason="no GDAL: pip install -e '.[large]' brings rasterio")
pytestmark = pytest.mark.usefixtures("running_ray")

HEIGHT, WIDTH = 300, 420
LARGE = 100_000  # pixels, from which images are read by rows here
PLACE = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(500_000, 4_650_000, 0.5, 0.5)}


def tiff(path: Path, pixels: np.ndarray, **options: object) -> None:
    """H x W x bands as a TIFF."""
    height, width, count = pixels.shape
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype, **options) as file:
        file.write(np.moveaxis(pixels, 2, 0))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One picture in every kind of file, small ones beside them, and some that must fail."""
    folder = tmp_path_factory.mktemp("archive")
    pixels = decode(photo(3, HEIGHT, WIDTH))
    tiled = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    tiff(folder / "tiles.tif", pixels, compress="deflate", **tiled, **PLACE)
    tiff(folder / "strips.tif", pixels, blockysize=5)
    tiff(folder / "wide.tif", pixels.astype(np.uint16) << 8, photometric="RGB", **tiled)
    tiff(folder / "alpha.tif", np.dstack([pixels, pixels[..., 0] | 128]), photometric="RGB", alpha="yes")
    tiff(folder / "small.tif", pixels[:50, :70], **PLACE)
    Image.fromarray(pixels).save(folder / "colour.png")
    Image.fromarray(pixels[..., 1]).save(folder / "grey.png")
    Image.fromarray(pixels).save(folder / "photo.jpg", quality=95, subsampling=0)
    Image.fromarray(pixels).save(folder / "photo.webp", lossless=True)
    (folder / "small.jpg").write_bytes(photo(4))
    half = (folder / "tiles.tif").read_bytes()
    (folder / "damaged.tif").write_bytes(half[: len(half) * 2 // 3])
    Image.new("L", (2000, 1000)).save(folder / "above.png")
    return folder


@contextmanager
def lower_limit() -> Iterator[None]:
    """Runs that start in the body take images above LARGE pixels for large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "Task", functools.partial(stages.Task, large_pixels=LARGE))
        yield


def run(archive: Path, results: Path, model: Path, **more: object) -> dict[str, dict[str, object]]:
    """Rows by name."""
    chosen = {"max_error_rate": 1.0, "tile": 193, "overlap": 64, "max_pixels": 1_000_000, "crf": False, **more}
    segment.segment(SegmentOptions(archive=str(archive), results=str(results), model=str(model), **chosen))  # type: ignore[arg-type]
    found = ResultsTable.open(str(results)).dataset().to_table().to_pylist()
    assert len(found) == len(list(archive.iterdir()))
    return {row["uri"].rsplit("/", 1)[-1]: row for row in found}


@pytest.fixture(scope="module")
def results(archive: Path, model: Path, running_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "results"
    with lower_limit():
        run(archive, folder, model)
    return folder


def rows(results: Path) -> dict[str, dict[str, object]]:
    found = ResultsTable.open(str(results)).dataset().to_table().to_pylist()
    return {row["uri"].rsplit("/", 1)[-1]: row for row in found}


def test_the_rows_of_large_images_are_those_of_images_decoded_whole(
    archive: Path, results: Path, model: Path, tmp_path: Path
) -> None:
    whole, large = run(archive, tmp_path / "whole", model), rows(results)
    names = {path.name for path in archive.iterdir()} - {"damaged.tif", "above.png", "photo.webp"}
    assert {name for name, row in large.items() if row["status"] == "ok"} == names
    for name in names:
        labels, expected = (masks.decode_png(found[name]["mask"]) for found in (large, whole))  # type: ignore[arg-type]
        # The JPEG's pixels are another decoder's.
        assert (labels == expected).mean() >= (0.98 if name == "photo.jpg" else 0.9999), name
        assert labels.shape == (large[name]["height"], large[name]["width"]) == expected.shape
        counts = dict(large[name]["class_pixels"])  # type: ignore[call-overload]
        assert counts == {("background", "cat", "dog")[index]: (labels == index).sum() for index in np.unique(labels)}
        assert large[name]["confidence"] == pytest.approx(whole[name]["confidence"], abs=2e-3)
        assert large[name]["refined"] is None


def test_the_crf_in_windows_agrees_with_the_whole(tmp_path: Path) -> None:
    """Real photos and the bundled model: scores of noise would hang on where the lattice's cells lie in each window."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted((EXAMPLES / "images").glob("*.jpg"))[:3]:
        Image.open(path).convert("RGB").resize((450, 360)).save(photos / f"{path.stem}.png")
    whole = run(photos, tmp_path / "whole", Path("pets"), crf=True)
    with lower_limit():
        large = run(photos, tmp_path / "large", Path("pets"), crf=True)
    for name, row in large.items():
        assert int(row["height"]) * int(row["width"]) > LARGE  # type: ignore[call-overload]
        labels, expected = (masks.decode_png(found[name]["mask"]) for found in (large, whole))  # type: ignore[arg-type]
        assert (labels == expected).mean() >= 0.99, name
        assert row["refined"] == whole[name]["refined"] is not None


def test_what_cannot_be_done_is_an_error_row_with_the_reason(results: Path) -> None:
    found = rows(results)
    assert str(found["damaged.tif"]["error"]).startswith("decode: damaged or truncated: ")
    above = "decode: 2000 x 1000 is 2,000,000 pixels, over the limit of 1,000,000 (--max-pixels raises it)"
    assert found["above.png"]["error"] == above
    assert "takes TIFF, PNG and JPEG, not WEBP" in str(found["photo.webp"]["error"])


def test_with_gpus_a_large_image_is_done_where_it_is_scored(archive: Path, results: Path, model: Path) -> None:
    """The two stages of that layout, one after the other: the finished row goes through the second as it is."""
    import ray

    from deeplab.models import checkpoint
    from pipelines.segment.poison import Register

    options = SegmentOptions(archive="a", results="r", model=str(model), tile=193, overlap=64, crf=False, max_pixels=1_000_000)
    task = replace(segment.task_of(segment.begin(options)), large_pixels=LARGE)
    register = ray.remote(num_cpus=0)(Register).remote()
    paths = [archive / name for name in ("small.jpg", "tiles.tif", "damaged.tif")]
    block = pa.table(
        {"uri": [path.as_uri() for path in paths], "version": ["1", "2", "3"], "bytes": [path.stat().st_size for path in paths]}
    )
    scored = stages.Score(ray.put(checkpoint.read(model)), task, register)(plan.packed(block))
    assert [value is None for value in scored["finished"].to_pylist()] == [True, False, True]
    done = stages.refine(scored, task, register)
    assert done.schema.names == [*FILE_SCHEMA.names, "node", "seconds"]
    assert done["version"].to_pylist() == ["1", "2", "3"]
    assert done["read_version"].to_pylist() == [filesystems.local_version(path.stat()) for path in paths]
    expected = rows(results)
    for row, path in zip(done.to_pylist(), paths, strict=True):
        assert (row["status"], row["error"]) == (expected[path.name]["status"], expected[path.name]["error"])
        if row["status"] == "ok":
            labels, others = masks.decode_png(row["mask"]), masks.decode_png(expected[path.name]["mask"])  # type: ignore[arg-type]
            assert (labels == others).mean() >= 0.9999


def test_a_table_with_masks_above_pillows_limit_is_in_order(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert verify(ResultsTable.open(str(results))).problems == []


def test_pictures_of_large_images_are_reduced(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "MAX_PIXELS", LARGE)
    monkeypatch.setattr(preview, "SHOWN_PIXELS", HEIGHT * WIDTH // 4)
    table = ResultsTable.open(str(results))
    done = export.export(table, table.pick_model(None), tmp_path / "overlays", "overlay")
    assert done.skipped == {}
    assert Image.open(tmp_path / "overlays" / "tiles.jpg").size == (WIDTH // 2, HEIGHT // 2)
    assert Image.open(tmp_path / "overlays" / "small.jpg").size == (80, 60)
    shown = show(table, table.pick_model(None), tmp_path / "sheet.png", 20)
    assert (shown.files, shown.skipped) == (done.files, {})


def test_geotiff_masks_lie_where_their_images_lie(archive: Path, results: Path, tmp_path: Path) -> None:
    table = ResultsTable.open(str(results))
    done = export.export(table, table.pick_model(None), tmp_path / "masks", "geotiff")
    assert (done.files, done.skipped) == (len(rows(results)) - 3, {})
    for name, row in rows(results).items():
        if row["status"] != "ok":
            continue
        path = tmp_path / "masks" / f"{name}.tif"
        with rasterio.open(path if path.exists() else path.with_suffix("").with_suffix(".tif")) as mask:
            np.testing.assert_array_equal(mask.read(1), masks.decode_png(row["mask"]))  # type: ignore[arg-type]
            assert [mask.colormap(1)[index][:3] for index in range(3)] == [
                tuple(c) for c in table.classes(str(row["model"])).colours
            ]
            assert mask.profile["tiled"] or mask.shape == (50, 70) or mask.shape == (60, 80)
            if name in ("tiles.tif", "small.tif"):
                assert (mask.crs, mask.transform) == (rasterio.crs.CRS.from_string(PLACE["crs"]), PLACE["transform"])
            else:
                assert mask.crs is None


def test_an_image_that_changed_gets_no_geotiff_and_none_is_overwritten(model: Path, tmp_path: Path) -> None:
    archive = tmp_path / "photos"
    archive.mkdir()
    pixels = decode(photo(3))
    tiff(archive / "a.tif", pixels, **PLACE)
    tiff(archive / "b.tif", pixels, **PLACE)
    run(archive, tmp_path / "results", model)
    table = ResultsTable.open(str(tmp_path / "results"))
    before = (archive / "a.tif").read_bytes()
    with pytest.raises(export.ResultsError, match="choose another folder"):
        export.export(table, table.pick_model(None), archive, "geotiff")
    assert (archive / "a.tif").read_bytes() == before
    tiff(archive / "a.tif", pixels[:30], **PLACE)
    done = export.export(table, table.pick_model(None), tmp_path / "masks", "geotiff")
    assert done.files == 1
    assert list(done.skipped.values()) == ["the photo cannot be used: it is (30, 80) now, the mask (60, 80)"]
