"""A network of one convolution, small photos and a run with both: the time of such a run is that of the pipeline itself."""

from __future__ import annotations

import dataclasses
import io
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.options import SegmentOptions
    from pipelines.segment.run import Run

SIDE = 64


def register() -> Path:
    """Enter the architecture `pointwise` into this process's zoo. The path only names the model in errors."""
    from torch import Tensor, nn

    from deeplab import zoo
    from deeplab.networks.network import TENSORFLOW, SegmentationNetwork

    class Pointwise(nn.Conv2d):
        output_stride = 8

    class Sleep(nn.Module):
        """In place of a network's work: so many seconds per image."""

        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds = seconds

        def forward(self, scores: Tensor) -> Tensor:
            time.sleep(self.seconds * scores.shape[0])
            return scores

    def build(classes: int, seconds: float = 0.0) -> SegmentationNetwork:
        head = Sleep(seconds) if seconds else nn.Identity()
        return SegmentationNetwork(Pointwise(3, classes, 1, stride=8), head, classes, TENSORFLOW)

    zoo.ARCHITECTURES["pointwise"] = zoo.Architecture("pointwise", "one convolution", "none", build, 1)
    return Path("pointwise")


class Carried:
    """Is sent in place of the model's path and registers the architecture in the receiving process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return register, ()


def carried(source: tuple[Path, bytes, bytes]) -> tuple[Path, bytes, bytes]:
    """What `checkpoint.read` returned for a model of `make_model`, in a form that Ray's workers understand."""
    import toy  # as a module by this name: what it defines travels by value
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(toy)
    return (toy.Carried(), *source[1:])  # type: ignore[return-value]


def make_model(folder: Path, seconds: float = 0.0) -> Path:
    """Write a model folder. Its network sleeps `seconds` per image, in the process that scores."""
    from deeplab import zoo
    from deeplab.classes import PETS
    from deeplab.models import checkpoint

    register()
    classes = [{"name": name, "colour": list(colour)} for name, colour in zip(PETS.names, PETS.colours, strict=True)]
    architecture = {"name": "pointwise", "options": {"seconds": seconds}}
    card = {"name": "pointwise", "architecture": architecture, "classes": classes}
    checkpoint.save(folder, zoo.build("pointwise", 3, seed=0, seconds=seconds), card)
    return folder


def make_photos(folder: Path, count: int) -> Path:
    """`count` JPEGs of SIDE x SIDE pixels, 1,000 per folder: a hundred different ones under many names."""
    import numpy as np
    from PIL import Image

    different = []
    for seed in range(100):
        small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
        different.append(buffer.getvalue())
    for index in range(count):
        if index % 1000 == 0:
            (folder / f"{index // 1000:04d}").mkdir(parents=True)
        (folder / f"{index // 1000:04d}" / f"photo-{index:07d}.jpg").write_bytes(different[index % 100])
    return folder


def begin(options: SegmentOptions) -> Run:
    """`run.begin` for a model of `make_model`."""
    from pipelines.segment import run as segment

    register()
    run = segment.begin(options)
    return dataclasses.replace(run, source=carried(run.source))
