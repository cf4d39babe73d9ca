"""Seconds per stage of `deeplab segment` with each CRF, over the same photos.

    python benchmarks/crf_stages.py [--photos FOLDER] [--images 40] [--repeats 1]

The stages' seconds are wall time summed over the photos, as the command reports them; the CRFs take turns.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BESIDE = Path(__file__).resolve().parents[2] / "shared"
STAGES = ("read", "decode", "score", "refine", "encode")


def seconds(archive: Path, results: Path, model: str, crf: dict[str, Any]) -> Mapping[str, float]:
    """Seconds per stage of one run."""
    from pipelines.options import SegmentOptions
    from pipelines.segment.run import segment

    shutil.rmtree(results, ignore_errors=True)
    summary = segment(SegmentOptions(archive=str(archive), results=str(results), model=model, **crf))
    return summary.seconds_by_stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=BESIDE / "data" / "pets" / "images")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--model", default="pets")
    arguments = parser.parse_args()
    from pipelines.cluster import connection

    kinds: dict[str, dict[str, Any]] = {
        "pydensecrf": {"crf_backend": "pydensecrf"},
        "exact": {"crf_mode": "exact"},
        "fast": {"crf_mode": "fast"},
        "half": {"crf_mode": "half"},
    }
    seconds_of: dict[str, list[Mapping[str, float]]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as folder, connection.session(cpus=2):
        archive = Path(folder) / "photos"
        archive.mkdir()
        for path in sorted(arguments.photos.glob("*.jpg"))[: arguments.images]:
            shutil.copy(path, archive)
        for _ in range(arguments.repeats):
            for name, crf in kinds.items():
                seconds_of[name].append(seconds(archive, Path(folder) / "results", arguments.model, crf))
    print(f"seconds over {arguments.images} photos, median of {arguments.repeats}: {', '.join(STAGES)}")
    for name, runs in seconds_of.items():
        print(f"{name:10} " + "  ".join(f"{statistics.median(run[stage] for run in runs):8.2f}" for stage in STAGES))


if __name__ == "__main__":
    main()
