"""Peak memory and time of `deeplab segment` on one very large image.

    python benchmarks/large.py [--side 20000] [--kind tiles|strips|png|jpeg] [--compress none|deflate|jpeg] [--no-crf]

Makes a picture of --side x --side pixels out of the example photos (each stretched to 1000 x 1000, in rows and columns)
and segments it with the bundled model and the real command. Prints the peak resident memory of the process that worked on the
image (VmHWM), the peak of all processes of the run together (proportional set size, read twice a second), and seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples" / "pets" / "images"
CELL = 1000  # pixels that each photo takes


def make(path: Path, side: int, kind: str, compress: str) -> None:
    """Write the picture band by band; GDAL makes PNG and JPEG from a TIFF, also by rows."""
    import rasterio
    import rasterio.shutil
    from rasterio.transform import from_origin

    photos = [np.asarray(Image.open(photo).convert("RGB").resize((CELL, CELL))) for photo in sorted(EXAMPLES.glob("*.jpg"))]
    options: dict[str, str | int] = {
        "compress": compress,
        "photometric": "YCBCR" if compress == "jpeg" else "RGB",
        "BIGTIFF": "IF_SAFER",
    }
    if kind != "strips":
        options |= {"tiled": True, "blockxsize": 256, "blockysize": 256}
    place = {"crs": "EPSG:32633", "transform": from_origin(500_000, 4_650_000, 0.5, 0.5)}
    target = path if kind in ("tiles", "strips") else path.with_suffix(".tmp.tif")
    shape = {"height": side, "width": side, "count": 3, "dtype": "uint8"}
    with rasterio.open(target, "w", driver="GTiff", **shape, **options, **place) as file:
        for row, top in enumerate(range(0, side, CELL)):
            band = np.concatenate([photos[(7 * row + column) % len(photos)] for column in range(-(-side // CELL))], axis=1)
            band = band[: side - top, :side]
            file.write(np.moveaxis(band, 2, 0), window=((top, top + len(band)), (0, side)))
    if target != path:
        rasterio.shutil.copy(target, path, driver=kind.upper())
        target.unlink()


def family(root: int) -> list[int]:
    """A process and all its descendants, also session leaders."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                children.setdefault(int((entry / "stat").read_text().rpartition(")")[2].split()[1]), []).append(int(entry.name))
    family = [root]
    for process in family:
        family += children.get(process, [])
    return family


def field(process: int, file: str, name: str) -> int:
    """A number in /proc/PID/FILE, in bytes; 0 if the process has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/{file}").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--kind", choices=("tiles", "strips", "png", "jpeg"), default="tiles")
    parser.add_argument("--compress", choices=("none", "deflate", "jpeg"), default="deflate")
    parser.add_argument("--no-crf", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder in which picture and results are kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="deeplab-large-") as scratch:
        folder = arguments.keep or Path(scratch)
        archive, results = folder / "archive", folder / "results"
        archive.mkdir(parents=True, exist_ok=True)
        image = archive / f"large{ {'png': '.png', 'jpeg': '.jpg'}.get(arguments.kind, '.tif') }"
        make(image, arguments.side, arguments.kind, arguments.compress)
        pixels = arguments.side**2
        kind = f"{arguments.kind}, {arguments.compress}, {image.stat().st_size:,} bytes"
        print(f"{image.name}: {arguments.side} x {arguments.side}, {kind}", flush=True)
        command = [str(Path(sys.executable).with_name("deeplab")), "segment", str(archive), str(results), "--json"]
        command += ["--max-pixels", str(pixels), *(["--no-crf"] if arguments.no_crf else [])]
        start = time.perf_counter()
        run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        highest = together = 0
        while run.poll() is None:
            processes = family(run.pid)
            together = max(together, sum(field(process, "smaps_rollup", "Pss") for process in processes))
            highest = max(highest, *(field(process, "status", "VmHWM") for process in processes))
            time.sleep(0.5)
        seconds = time.perf_counter() - start
        out, _ = run.communicate()
        print(f"peak of the largest process: {highest / 1e9:.2f} GB; of all processes together: {together / 1e9:.2f} GB")
        if run.returncode:
            sys.exit(f"exit code {run.returncode} after {seconds:.0f} s")
        summary = json.loads(out)
        print(
            f"{seconds:.0f} s ({summary['seconds']:.0f} s without start-up), {pixels / 1e6 / summary['seconds']:.2f} megapixels/s"
        )
        print(f"seconds by stage: { {stage: round(value, 1) for stage, value in summary['seconds_by_stage'].items()} }")


if __name__ == "__main__":
    main()
