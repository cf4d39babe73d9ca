"""The report of a large table: seconds, peak memory and megabytes of `deeplab report` on 1,000,000 rows.

    python benchmarks/report.py [--rows 1000000] [--sample 200]

Synthetic rows, real code: masks of the example photos' sizes, photos that are links to the examples, a hundredth of the rows
are errors. The page is made in a separate process; writing the table is not counted.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from measure import apart
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples" / "pets" / "images"
MODEL = "pets@0123456789ab"
FOLDER = 1000  # links a folder


def make(root: Path, rows: int) -> Path:
    from deeplab.classes import PETS
    from deeplab.masks import class_pixels, encode_png
    from pipelines.table.commit import ROWS_PER_FILE, write_part
    from pipelines.table.results_table import ResultsTable
    from pipelines.table.schema import FILE_SCHEMA

    photos = sorted(EXAMPLES.glob("*.jpg"))
    kinds = []
    for index, path in enumerate(photos):
        with Image.open(path) as image:
            labels = np.zeros((image.height, image.width), np.uint8)
        labels[40:200, 30 : 60 + 8 * index] = 1 + index % 2
        kinds.append((path, labels.shape, encode_png(labels, PETS), list(class_pixels(labels, PETS).items())))
    table = ResultsTable.ensure(str(root / "results"))
    classes = [{"name": name, "colour": list(colour)} for name, colour in zip(PETS.names, PETS.colours, strict=True)]
    table.register(MODEL, {"name": "pets", "classes": classes})
    random = np.random.default_rng(0)
    start = datetime(2026, 1, 2, tzinfo=UTC)
    parts = []
    for first in range(0, rows, ROWS_PER_FILE):
        batch = []
        for number in range(first, min(rows, first + ROWS_PER_FILE)):
            folder = root / "photos" / f"{number // FOLDER:05d}"
            if number % FOLDER == 0:
                folder.mkdir(parents=True)
            path, shape, mask, counts = kinds[number % len(kinds)]
            link = folder / f"image-{number:07d}.jpg"
            os.symlink(path, link)
            row = {
                "uri": link.as_uri(),
                "version": "1",
                "run": f"run-{number * 4 // rows}",
                "segmented_at": start + timedelta(seconds=number / 40),
            }
            if number % 100:
                good = {"status": "ok", "height": shape[0], "width": shape[1], "mask": mask, "class_pixels": counts}
                batch.append({**row, **good, "confidence": float(random.beta(20, 2))})
            else:
                batch.append({**row, "status": "error", "error": f"decode: damaged or truncated: at byte {number}"})
        parts.append(write_part(table.uri, MODEL, pa.Table.from_pylist(batch, schema=FILE_SCHEMA)).add_action(MODEL))
    for index in range(0, len(parts), 5):
        table.commit(f"run-{index}", 1, parts[index : index + 5], notes={"run": f"run-{index * 4 // len(parts)}"}, model=MODEL)
    return root / "results"


def page(results: Path, folder: Path, sample: int) -> tuple[int, int]:
    """Number of rows, and of photos that could not be shown."""
    from pipelines.report.static_page import build
    from pipelines.table.results_table import ResultsTable

    built = build(ResultsTable.open(str(results)), folder, MODEL, sample)
    return built.facts.images, len(built.gone)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--sample", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="deeplab-report-") as name:
        results = apart(make, Path(name), arguments.rows).result
        cost = apart(page, results, Path(name) / "report", arguments.sample)
        rows, gone = cost.result
        written = sum(path.stat().st_size for path in (Path(name) / "report").rglob("*") if path.is_file())
        assert rows == arguments.rows and not gone
        print(f"{rows} rows, {arguments.sample} in the gallery: {cost}, {written / 1e6:.1f} MB on disk")


if __name__ == "__main__":
    main()
