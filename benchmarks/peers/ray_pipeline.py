"""Masks the way of the Ray documentation, as a Ray Data pipeline on one core: a child of `turns`, for whole.py.

    python -m peers.ray_pipeline CLASSES CRF_PARAMETERS HEIGHT WIDTH

`read_images` decodes and resizes to HEIGHT x WIDTH, `map_batches` scores with torchvision's deeplabv3_mobilenet_v3_large (random
weights) in an actor, `map` refines with pydensecrf and encodes a PNG. Ray has one CPU, of which each of the three takes a third.
"""

from __future__ import annotations

import io
import os
import sys
import time
from typing import Any

import numpy as np
from measure import SessionTime

from deeplab.crf import PARAMETER_SETS
from deeplab.crf.pydensecrf_backend import pydensecrf_marginals
from peers.turns import answer
from pipelines.cluster.connection import session

BATCH = 8
THIRD = 0.33  # of a CPU

Batch = dict[str, np.ndarray]


class Scores:
    """Pixels to scores at full size, as torchvision's networks give them."""

    def __init__(self, classes: int) -> None:
        import torch
        from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.network = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=classes).eval()

    def __call__(self, batch: Batch) -> Batch:
        import torch
        from torchvision.transforms.v2.functional import normalize, to_dtype

        start = time.thread_time()
        pixels = to_dtype(torch.from_numpy(batch["image"]).permute(0, 3, 1, 2), torch.float32, scale=True)
        with torch.inference_mode():
            pixels = normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            batch["scores"] = self.network(pixels)["out"].numpy()
        batch["score"] = np.full(len(pixels), (time.thread_time() - start) / len(pixels))
        return batch


def refined(row: dict[str, Any], crf: str) -> dict[str, Any]:
    """The PNG of a photo's mask, and the seconds of its stages."""
    from PIL import Image

    start = time.thread_time()
    labels = pydensecrf_marginals(row["image"], row["scores"], PARAMETER_SETS[crf]).argmax(0).astype(np.uint8)
    middle = time.thread_time()
    png = io.BytesIO()
    Image.fromarray(labels).save(png, "PNG")
    return {"png": png.getvalue(), "score": row["score"], "CRF": middle - start, "encode": time.thread_time() - middle}


class Pipeline:
    def __init__(self, classes: str, crf: str, height: str, width: str) -> None:
        self.classes, self.crf, self.size = int(classes), crf, (int(height), int(width))
        self.time = SessionTime(every=2.0)  # looking takes CPU seconds, too
        self.warm = False

    def run(self, paths: list[str]) -> dict[str, float]:
        """Seconds an image on the wall, of CPU of all of Ray's processes, and of it by stage.

        The difference between a pipeline of all photos and one of the first quarter: the start of workers does not count.
        """
        if not self.warm:  # Ray keeps its workers for the next pipeline
            self._seconds(paths[:BATCH])
            self.warm = True
        few, many = (self._seconds(paths[:count]) for count in (len(paths) // 4, len(paths)))
        count = len(paths) - len(paths) // 4
        return {name: (many[name] - few[name]) / count for name in many}

    def _seconds(self, paths: list[str]) -> dict[str, float]:
        """Seconds from the start of a pipeline to the arrival of its last mask."""
        import ray
        from ray.data import ActorPoolStrategy, TaskPoolStrategy

        wall, cpu = time.perf_counter(), sum(self.time.now().values())
        # One task of a kind at a time, as there is one core: more would start more workers in long pipelines than in short ones.
        blocks = len(paths) // BATCH
        data = ray.data.read_images(paths, size=self.size, mode="RGB", num_cpus=THIRD, concurrency=1, override_num_blocks=blocks)
        scored = data.map_batches(
            Scores, fn_constructor_args=(self.classes,), batch_size=BATCH, compute=ActorPoolStrategy(size=1), num_cpus=THIRD
        )
        masks = scored.map(refined, fn_args=(self.crf,), compute=TaskPoolStrategy(size=1), num_cpus=THIRD)
        figures = dict.fromkeys(("score", "CRF", "encode"), 0.0)
        done = 0
        for batch in masks.iter_batches(batch_size=None, prefetch_batches=0):
            for stage in figures:
                figures[stage] += float(batch[stage].sum())
            done += len(batch["png"])
            if done == len(paths):  # its workers are still there to be counted
                figures |= {"wall": time.perf_counter() - wall, "cpu": sum(self.time.now().values()) - cpu}
        return figures


def main() -> None:
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # Ray's processes inherit it
    import ray

    pipeline = Pipeline(*sys.argv[1:])
    with session(cpus=1):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.issue_detectors_config.detectors = []
        answer(run=pipeline.run)


if __name__ == "__main__":
    main()
