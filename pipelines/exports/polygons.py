"""Masks of georeferenced images as polygons in WGS 84: GeoJSON and GeoParquet."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deeplab.errors import ImageError, one_line
from pipelines.exports import geotiff as tiff
from pipelines.exports.source import Mask, Masks

if TYPE_CHECKING:
    from affine import Affine
    from rasterio.crs import CRS

Ring = list[tuple[float, float]]
# A straight line in the image's coordinate system is not straight in degrees: edges get a point wherever they cross a multiple of
# this many pixels, the same for the polygons on both sides. Between two points d metres apart the lines differ by about
# d^2 / 8R tan(latitude): at 60 degrees by 1.4 m with pixels of 100 m, and a hundredth of that with pixels of 10 m.
EDGE = 64
DIGITS = 9  # of degrees: 0.1 mm
PROJECTED_AT_ONCE = 1000  # polygons in one call
GROUP_BYTES = 32 << 20  # of geometry in a row group
WGS84 = "OGC:CRS84"  # longitude before latitude
BOX = ("xmin", "ymin", "xmax", "ymax")


class Geometry(TypedDict):
    """A GeoJSON Polygon or MultiPolygon; `coordinates`: its rings, or a list of rings for each of its polygons."""

    type: Literal["Polygon", "MultiPolygon"]
    coordinates: Any


@dataclass(frozen=True)
class Region:
    """Connected pixels of one class, with their outline in degrees of longitude and latitude."""

    label: int
    pixels: int
    geometry: Geometry

    def box(self) -> tuple[float, float, float, float]:
        """West, south, east, north."""
        points = np.array([point for polygon in polygons_of(self.geometry) for ring in polygon for point in ring])
        return (*points.min(0).tolist(), *points.max(0).tolist())


def geojson(source: Masks) -> None:
    """One NAME.geojson per image: an RFC 7946 FeatureCollection with a feature per connected region of a class."""
    for mask in source:
        regions = _regions(source, mask)
        if regions is None:
            continue
        with source.target(mask, ".geojson").open("w", encoding="utf-8") as out:
            out.write('{"type": "FeatureCollection", "features": [')
            for number, region in enumerate(regions):
                properties = {"class": source.classes.names[region.label], "class_id": region.label, "pixels": region.pixels}
                feature = {"type": "Feature", "geometry": region.geometry, "properties": {**properties, "uri": mask.uri}}
                out.write((",\n" if number else "\n") + json.dumps(feature))
            out.write("]}\n")
        source.wrote(1)


def geoparquet(source: Masks) -> None:
    """masks.parquet, GeoParquet 1.1: a row per connected region of a class, as WKB with its bounding box.

    Row groups have GROUP_BYTES of geometry, so memory does not grow with the archive.
    """
    schema = pa.schema(
        [
            ("uri", pa.string()),
            ("class", pa.string()),
            ("class_id", pa.int32()),
            ("pixels", pa.int64()),
            ("confidence", pa.float32()),
            ("bbox", pa.struct([(name, pa.float64()) for name in BOX])),
            ("geometry", pa.binary()),
        ]
    )
    rows: list[dict[str, object]] = []
    size, kinds, bounds = 0, set(), (math.inf, math.inf, -math.inf, -math.inf)
    repeated = ["uri", "class", "class_id", "confidence"]
    with pq.ParquetWriter(source.folder / "masks.parquet", schema, compression="zstd", use_dictionary=repeated) as out:
        for mask in source:
            regions = _regions(source, mask)
            if regions is None:
                continue
            for region in regions:
                box, geometry = region.box(), wkb(region.geometry)
                bounds = (min(bounds[0], box[0]), min(bounds[1], box[1]), max(bounds[2], box[2]), max(bounds[3], box[3]))
                kinds.add(region.geometry["type"])
                rows.append(
                    {
                        "uri": mask.uri,
                        "class": source.classes.names[region.label],
                        "class_id": region.label,
                        "pixels": region.pixels,
                        "confidence": mask.confidence,
                        "bbox": dict(zip(BOX, box, strict=True)),
                        "geometry": geometry,
                    }
                )
                size += len(geometry)
                if size >= GROUP_BYTES:
                    out.write_table(pa.Table.from_pylist(rows, schema=schema))
                    rows, size = [], 0
            source.wrote()
        if rows:
            out.write_table(pa.Table.from_pylist(rows, schema=schema))
        column: dict[str, object] = {
            "encoding": "WKB",
            "geometry_types": sorted(kinds),
            "orientation": "counterclockwise",
            "edges": "planar",
        }
        covering = {"bbox": {name: ["bbox", name] for name in BOX}}
        column |= {"covering": covering, **({"bbox": list(bounds)} if kinds else {})}  # the default `crs` is OGC:CRS84
        geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
        out.add_key_value_metadata({"geo": json.dumps(geo)})
    source.done.files = 1


def _regions(source: Masks, mask: Mask) -> Iterator[Region] | None:
    """The regions of a mask; None if they cannot be projected, with the reason in `source.done`."""
    if (encoded := source.photo(mask)) is None:
        return None
    try:
        georeference = tiff.place(encoded, (mask.height, mask.width))
        if georeference is None or georeference["crs"] is None:
            raise ImageError("it has no georeference (GeoTIFF has); coco-rle, label-studio and cvat need none")
        crs, transform = georeference["crs"], georeference["transform"]
        _require_projectable(mask, crs, transform)
    except ImageError as error:
        source.unusable(mask, error)
        return None
    return regions(mask.labels(), crs, transform, source.classes.background)


def _require_projectable(mask: Mask, crs: CRS, transform: Affine) -> None:
    """ImageError unless a grid of points over the image has finite coordinates in WGS 84."""
    from rasterio.warp import transform as project

    points = [(mask.width * x / 8, mask.height * y / 8) for x in range(9) for y in range(9)]
    try:
        coordinates = project(crs, WGS84, *zip(*_to_map(points, transform), strict=True))
    except Exception as error:  # GDAL's, which rasterio does not export
        raise ImageError(f"its coordinate system cannot be converted to WGS 84 ({one_line(error, 100)})") from error
    if not np.isfinite(coordinates).all():
        raise ImageError("a part of it lies outside the area in which its coordinate system can be converted to WGS 84")


def regions(labels: np.ndarray, crs: CRS, transform: Affine, background: int | None) -> Iterator[Region]:
    """Each connected region (by the sides of pixels) of each class but `background` in an H x W label map.

    Borders follow the sides of pixels exactly: rasterized in the image's grid they give the label map again.
    """
    from rasterio.features import shapes

    wanted = None if background is None else labels != background
    outlines = shapes(labels, mask=wanted, connectivity=4)
    while batch := list(islice(outlines, PROJECTED_AT_ONCE)):
        in_pixels = [(int(label), [_densified(ring) for ring in shape["coordinates"]]) for shape, label in batch]
        on_map = [Geometry(type="Polygon", coordinates=[_to_map(ring, transform) for ring in rings]) for _, rings in in_pixels]
        for (label, rings), geometry in zip(in_pixels, _projected(on_map, crs), strict=True):
            pixels = abs(_area(rings[0])) - sum(abs(_area(hole)) for hole in rings[1:])
            yield Region(label, round(pixels), _oriented(geometry))


def _densified(ring: Ring) -> Ring:
    """A ring of horizontal and vertical edges between pixels, with a point wherever an edge crosses a multiple of EDGE."""
    points = [ring[0]]
    for (x, y), (to_x, to_y) in pairwise(ring):
        low, high = sorted((x, to_x) if y == to_y else (y, to_y))
        between = range(int(low) // EDGE * EDGE + EDGE, int(high), EDGE)
        for place in between if (x, y) < (to_x, to_y) else reversed(between):
            points.append((float(place), y) if y == to_y else (x, float(place)))
        points.append((to_x, to_y))
    return points


def _to_map(ring: Ring, transform: Affine) -> Ring:
    """Columns and rows as coordinates of the image's coordinate system, by its affine transform."""
    a, b, c, d, e, f = transform[:6]
    return [(a * x + b * y + c, d * x + e * y + f) for x, y in ring]


def _projected(geometries: list[Geometry], crs: CRS) -> list[Geometry]:
    """The geometries in WGS 84, cut in two at the antimeridian (RFC 7946, 3.1.9)."""
    from rasterio.warp import transform_geom

    projected: list[Geometry] = transform_geom(crs, WGS84, geometries, antimeridian_cutting=True, precision=DIGITS)
    return projected


def polygons_of(geometry: Geometry) -> list[list[Ring]]:
    """The polygons of a geometry, each a list of rings."""
    polygons: list[list[Ring]] = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    return polygons


def _area(ring: Ring) -> float:
    """Signed area: positive for a counterclockwise ring (the shoelace formula)."""
    x, y = np.array(ring).T
    x, y = x - x[0], y - y[0]  # keeps precision far from the origin
    return float(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2


def _oriented(geometry: Geometry) -> Geometry:
    """The geometry with exterior rings counterclockwise and holes clockwise, as RFC 7946 requires."""
    oriented = []
    for polygon in polygons_of(geometry):
        oriented.append([ring if (_area(ring) > 0) == (number == 0) else ring[::-1] for number, ring in enumerate(polygon)])
    kind = geometry["type"]
    return Geometry(type=kind, coordinates=oriented[0] if kind == "Polygon" else oriented)


def wkb(geometry: Geometry) -> bytes:
    """A GeoJSON Polygon or MultiPolygon as little-endian well-known binary (OGC 06-103r4, 8.2)."""
    parts = []
    for polygon in polygons_of(geometry):
        rings = [struct.pack("<I", len(ring)) + np.array(ring, "<f8").tobytes() for ring in polygon]
        parts.append(struct.pack("<BII", 1, 3, len(rings)) + b"".join(rings))
    return parts[0] if geometry["type"] == "Polygon" else struct.pack("<BII", 1, 6, len(parts)) + b"".join(parts)
