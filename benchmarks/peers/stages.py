"""From an image file to a PNG mask by the packages of one tree, stage by stage: a child of `turns`, for whole.py.

    python -m peers.stages MODEL [FOLDER]

FOLDER: of `environment.package_of`, whose packages are used instead of this tree's. Only what commits have had for long is called.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from peers.turns import answer

STAGES = ("decode", "score", "CRF", "encode")


class Ways:
    """The ways of one model to segment, each with its Predictor and CRF."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.ways: dict[str, tuple[Any, Any, Any]] = {}

    def open(self, way: str, options: dict[str, Any]) -> str:
        """Make the way `way` with these options of `deeplab benchmark`: the precision that it computes in."""
        import torch

        from deeplab.models import checkpoint
        from deeplab.scoring.predictor import Predictor
        from pipelines.options import BenchmarkOptions

        torch.set_num_threads(1)
        chosen: Any = BenchmarkOptions(model=self.model, **options)
        model = checkpoint.load(self.model)
        if hasattr(chosen, "prepared"):  # since there are qualities
            model = chosen.prepared(model)
            scoring = chosen.scoring(model)
        else:
            scoring = chosen.of_kind(import_module("deeplab.scoring.predictor").Scoring)
        predictor = Predictor(model.network, scoring, device="cpu")
        self.ways[way] = predictor, chosen.refinement(model).engine(), model.classes
        return predictor.precision

    def run(self, way: str, paths: list[str]) -> list[float]:
        """Read each photo and make its mask: CPU seconds of each stage, over all photos."""
        from deeplab import masks
        from deeplab.images.decoding import decode

        predictor, crf, classes = self.ways[way]
        network = predictor.network
        seconds = [0.0] * len(STAGES)
        for path in paths:
            times = [time.process_time()]
            image = decode(Path(path).read_bytes())
            times.append(time.process_time())
            (scores,) = predictor.scores([image])
            times.append(time.process_time())
            labels = crf.labels(image, scores, stride=network.stride, align_corners=network.align_corners)
            times.append(time.process_time())
            masks.encode_png(labels, classes)
            times.append(time.process_time())
            seconds = [total + after - before for total, before, after in zip(seconds, times, times[1:], strict=False)]
        return seconds


def main() -> None:
    model, *folder = sys.argv[1:]
    if folder:  # an editable installation of this tree would be found first
        sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "ScikitBuildRedirectingFinder"]
        sys.path.insert(0, folder[0])
        import deeplab

        assert deeplab.__file__ and deeplab.__file__.startswith(folder[0]), deeplab.__file__
    ways = Ways(model)
    answer(open=ways.open, run=ways.run)


if __name__ == "__main__":
    main()
