"""GeoJSON and GeoParquet, read back by their own libraries: in the image's grid the polygons give the mask again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely

from pipelines.exports import polygons
from pipelines.exports.geotiff import GeoTIFFError
from pipelines.table.results_table import ResultsTable
from tests.material import photo
from tests.pipelines.exports.exported import LAND, make_table, regions, written

rasterio = pytest.importorskip("rasterio", reason="no GDAL: pip install -e '.[large]' brings rasterio")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
NORTH = ("EPSG:32633", rasterio.transform.from_origin(500_000, 6_650_000, 10, 10))
TURNED = ("EPSG:32733", rasterio.Affine(0.17, -0.1, 400_000, 0.1, 0.17, 7_000_000))
DATELINE = ("EPSG:32601", rasterio.transform.from_origin(166_000, 10_000, 100, 100))  # 180 degrees run through it


def scene(path: Path, shape: tuple[int, int], crs: str | None, transform: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"crs": crs, "transform": transform} if crs else {}
    with rasterio.open(path, "w", driver="GTiff", height=shape[0], width=shape[1], count=1, dtype="uint8", **place) as file:
        file.write(np.zeros((1, *shape), np.uint8))
    return path


@pytest.fixture
def scenes(tmp_path: Path) -> dict[Path, tuple[np.ndarray, str, object]]:
    found = {}
    for name, (crs, transform), shape in (
        ("north", NORTH, (60, 1400)),
        ("sub/turned", TURNED, (40, 50)),
        ("date", DATELINE, (40, 60)),
    ):
        labels = regions(*shape, 3)
        if name == "north":
            labels[14], labels[15:] = 2, 1  # an edge of 14 km, straight in metres and not in degrees
        found[scene(tmp_path / "scenes" / f"{name}.tif", shape, crs, transform)] = (labels, crs, transform)
    return found


def burnt(frame: geopandas.GeoDataFrame, shape: tuple[int, int], crs: str, transform: object) -> np.ndarray:
    """The polygons in the grid of an image; 0 where there is none."""
    if crs == DATELINE[0]:  # in degrees that go on beyond 180
        frame = frame.set_geometry(
            [shapely.transform(shape, lambda xy: np.column_stack([np.where(xy[:, 0] < 0, xy[:, 0] + 360, xy[:, 0]), xy[:, 1]]))
             for shape in frame.geometry], crs=frame.crs)  # fmt: skip
    placed = frame.to_crs(crs)
    shapes = zip(placed.geometry, placed.class_id, strict=True)
    return rasterio.features.rasterize(shapes, shape, transform=transform, dtype=np.uint8)


def check(frame: geopandas.GeoDataFrame, labels: np.ndarray, crs: str, transform: object) -> None:
    assert frame.geometry.is_valid.all()
    np.testing.assert_array_equal(burnt(frame, labels.shape, crs, transform), labels)
    for index, name in enumerate(LAND.names):
        of = frame[frame.class_id == index]
        assert set(of["class"]) <= {name}
        assert of.pixels.sum() == ((labels == index).sum() if index else 0)


def test_geojson_gives_the_mask_again_wherever_the_image_lies(scenes: dict, tmp_path: Path) -> None:
    table = make_table(tmp_path / "results", {path: labels for path, (labels, _, _) in scenes.items()})
    assert written(table, tmp_path / "out", "geojson").files == 3
    for path, (labels, crs, transform) in scenes.items():
        target = tmp_path / "out" / path.relative_to(tmp_path / "scenes").with_suffix(".geojson")
        frame = geopandas.read_file(target)
        assert frame.crs == "EPSG:4326"
        assert set(frame.uri) == {path.as_uri()}
        check(frame, labels, crs, transform)
        for feature in json.loads(target.read_text())["features"][:200]:  # RFC 7946, 3.1.6
            for rings in polygons.polygons_of(feature["geometry"]):
                assert [shapely.LinearRing(ring).is_ccw for ring in rings] == [True] + [False] * (len(rings) - 1)
                assert all(-180 <= longitude <= 180 for ring in rings for longitude, _ in ring)


def test_a_long_edge_lies_in_degrees_where_it_lies_in_metres(scenes: dict, tmp_path: Path) -> None:
    path = next(iter(scenes))
    labels, crs, transform = scenes[path]
    written(make_table(tmp_path / "results", {path: labels}), tmp_path / "out", "geojson")
    frame = geopandas.read_file(tmp_path / "out" / "north.geojson")
    water = frame[frame.class_id == 1].union_all()
    rows, columns = np.mgrid[13:17, 0 : labels.shape[1]]
    centres = rasterio.warp.transform(crs, "OGC:CRS84", *rasterio.transform.xy(transform, rows.ravel(), columns.ravel()))
    np.testing.assert_array_equal(shapely.contains_xy(water, *centres), (labels[13:17] == 1).ravel())


def test_polygons_at_the_date_line_are_cut(scenes: dict, tmp_path: Path) -> None:
    [(path, (labels, _, _))] = [(path, of) for path, of in scenes.items() if path.name == "date.tif"]
    written(make_table(tmp_path / "results", {path: labels}), tmp_path / "out", "geojson")
    frame = geopandas.read_file(tmp_path / "out" / "date.geojson")
    assert "MultiPolygon" in set(frame.geom_type)
    assert (frame.geometry.explode().bounds.pipe(lambda box: box.maxx - box.minx) < 1).all()


def test_geoparquet_holds_all_images_in_row_groups(scenes: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polygons, "GROUP_BYTES", 10_000)
    table = make_table(tmp_path / "results", {path: labels for path, (labels, _, _) in scenes.items()})
    done = written(table, tmp_path / "out", "geoparquet")
    assert (done.files, done.images) == (1, 3)
    file = pq.ParquetFile(tmp_path / "out" / "masks.parquet")
    groups = [file.read_row_group(number, ["geometry"])["geometry"].nbytes for number in range(file.num_row_groups)]
    assert len(groups) > 3 and max(groups) < 60_000
    geo = json.loads(file.metadata.metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    frame = geopandas.read_parquet(tmp_path / "out" / "masks.parquet")
    assert frame.crs.to_string() == "OGC:CRS84"
    assert set(geo["columns"]["geometry"]["geometry_types"]) == set(frame.geom_type)
    np.testing.assert_allclose(frame.total_bounds, geo["columns"]["geometry"]["bbox"])
    for path, (labels, crs, transform) in scenes.items():
        check(frame[frame.uri == path.as_uri()], labels, crs, transform)
    [(path, _)] = [(path, of) for path, of in scenes.items() if path.name == "north.tif"]
    inside = geopandas.read_parquet(tmp_path / "out" / "masks.parquet", bbox=(10, 50, 20, 70))
    assert set(inside.uri) == {path.as_uri()} and len(inside) == (frame.uri == path.as_uri()).sum()


def test_images_that_lie_nowhere_are_left_out_with_the_reason(tmp_path: Path) -> None:
    labels = regions(60, 80, 3)
    folder = tmp_path / "scenes"
    of = {
        scene(folder / "here.tif", (60, 80), *NORTH): labels,
        scene(folder / "plain.tif", (60, 80), None, None): labels,
        scene(folder / "drawing.tif", (60, 80), 'LOCAL_CS["drawing",UNIT["metre",1]]', NORTH[1]): labels,
        scene(folder / "space.tif", (60, 80), "EPSG:32633", rasterio.transform.from_origin(1e9, 1e9, 10, 10)): labels,
        scene(folder / "smaller.tif", (30, 80), *NORTH): labels,
        folder / "gone.tif": labels,
    }
    (folder / "photo.jpg").write_bytes(photo(1))
    of[folder / "photo.jpg"] = labels
    table = make_table(tmp_path / "results", of, stale=False)
    for form in ("geojson", "geoparquet"):
        done = written(table, tmp_path / form, form)
        reasons = {Path(uri).name: reason for uri, reason in done.skipped.items()}
        assert (done.images, done.left_out, set(reasons)) == (
            1,
            6,
            {"plain.tif", "drawing.tif", "space.tif", "smaller.tif", "gone.tif", "photo.jpg"},
        )
        for name in ("plain.tif", "photo.jpg"):
            assert "no georeference" in reasons[name] and "coco-rle" in reasons[name]
        assert "cannot be converted to WGS 84" in reasons["drawing.tif"]
        assert "WGS 84" in reasons["space.tif"]
        assert "it is (30, 80) now, the mask (60, 80)" in reasons["smaller.tif"]
        assert "cannot be read" in reasons["gone.tif"]
    assert [path.name for path in (tmp_path / "geojson").glob("[!.]*")] == ["here.geojson"]


def test_without_rasterio_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table: ResultsTable = make_table(tmp_path / "results", {tmp_path / "a.tif": regions(8, 8, 3)})
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(GeoTIFFError, match=r"--format geojson needs rasterio: pip install 'deeplab-pipelines\[large\]'"):
        written(table, tmp_path / "out", "geojson")
    assert not (tmp_path / "out").exists()
