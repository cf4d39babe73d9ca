"""Exports in each format: CPU time and bytes per image, and whether memory grows with the number of images.

    python benchmarks/exports.py [--images 2000] [--formats png,coco-rle,...]

Makes GeoTIFFs of the example photos (JPEG inside, 320 pixels), each under many names, and a results table with their labels
as masks. Exports a quarter of the images and all of them, each in a separate process, and prints the CPU time per
image (from the difference, without imports) and both peaks of memory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from measure import apart
from PIL import Image

from deeplab import masks
from deeplab.classes import PETS
from pipelines.exports.export import export
from pipelines.exports.formats import FORMATS
from pipelines.storage import filesystems
from pipelines.table.commit import write_part
from pipelines.table.results_table import ResultsTable
from pipelines.table.schema import FILE_SCHEMA

EXAMPLES = Path(__file__).parents[1] / "examples" / "pets"
MODEL = "pets@000000000000"


def scenes(folder: Path) -> list[tuple[Path, bytes, tuple[int, int]]]:
    """The example photos as GeoTIFFs, with the PNGs of their labels."""
    import rasterio

    folder.mkdir(parents=True)
    images = []
    for number, photo in enumerate(sorted((EXAMPLES / "images").glob("*.jpg"))):
        pixels = np.asarray(Image.open(photo).convert("RGB"))
        labels = np.array(Image.open(EXAMPLES / "labels" / f"{photo.stem}.png"))
        labels[labels == 255] = 0
        path, (height, width) = folder / f"{photo.stem}.tif", labels.shape
        place = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 500_000 + 1000 * number, 0, -0.5, 4_650_000)}
        kind = {"driver": "GTiff", "dtype": "uint8", "count": 3, "compress": "jpeg", "photometric": "YCBCR"}
        with rasterio.open(path, "w", height=height, width=width, **kind, **place) as file:
            file.write(np.moveaxis(pixels, 2, 0))
        images.append((path, masks.encode_png(labels, PETS), (height, width)))
    return images


def make(folder: Path, images: int) -> str:
    """A results table of `images` rows, in files of 1000; the photos are links to a few."""
    kinds = scenes(folder / "kinds")
    table = ResultsTable.ensure(str(folder / "results"))
    classes = [{"name": name, "colour": list(colour)} for name, colour in zip(PETS.names, PETS.colours, strict=True)]
    table.register(MODEL, {"name": "pets", "classes": classes})
    for first in range(0, images, 1000):
        rows = []
        for number in range(first, min(first + 1000, images)):
            source, png, (height, width) = kinds[number % len(kinds)]
            path = folder / "photos" / f"{number // 1000:04d}" / f"{number:07d}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, path)
            row = {
                "uri": path.as_uri(),
                "version": filesystems.local_version(path.stat()),
                "status": "ok",
                "mask": png,
                "run": "run",
            }
            rows.append({**row, "height": height, "width": width, "confidence": 0.9, "segmented_at": datetime.now(UTC)})
        table.commit(
            f"run-{first}",
            1,
            [write_part(table.uri, MODEL, pa.Table.from_pylist(rows, schema=FILE_SCHEMA)).add_action(MODEL)],
            model=MODEL,
        )
    return table.uri


def work(uri: str, folder: str, form: str) -> tuple[int, int]:
    """Images and bytes written."""
    exported = export(ResultsTable.open(uri), MODEL, Path(folder), form)
    return exported.images, sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--formats", default=",".join(FORMATS))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="deeplab-exports-"))
    try:
        few, many = make(folder / "few", options.images // 4), make(folder / "many", options.images)
        print(f"{'format':15}{'CPU ms':>10}{'kB an image':>13}{f'MB at {options.images // 4}':>14}{f'MB at {options.images}':>14}")
        for form in options.formats.split(","):
            costs = []
            for name, uri in (("few", few), ("many", many)):
                costs.append(apart(work, uri, str(folder / "out" / name), form))
                shutil.rmtree(folder / "out" / name)
            (first, _), (last, size) = costs[0].result, costs[1].result
            per_image = 1000 * (costs[1].cpu - costs[0].cpu) / (last - first)
            print(f"{form:15}{per_image:10.1f}{size / last / 1000:13.1f}{costs[0].memory:14.0f}{costs[1].memory:14.0f}", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
