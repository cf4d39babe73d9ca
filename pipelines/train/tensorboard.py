"""TensorBoard: loss and learning rate by step, figures and sample predictions by validation."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from deeplab.files import Files, LocalFiles
from deeplab.training.loop import TrainingProgress

FOLDER = "tensorboard"


class Writer(Protocol):
    """The methods of tensorboardX.SummaryWriter that are used."""

    def add_scalar(self, tag: str, value: float, step: int) -> None: ...

    def add_image(self, tag: str, pixels: np.ndarray, step: int, *, dataformats: str) -> None: ...

    def close(self) -> None: ...


class Curves:
    """Writes to `out`/tensorboard through tensorboardX, which comes with Ray Train; without it writes nothing.

    The event file grows in place, which an object store does not support: there only metrics.jsonl and samples/ are written.
    """

    def __init__(self, out: Files) -> None:
        self.out = out
        self.writer: Writer | None = None
        if isinstance(out, LocalFiles):
            with suppress(ImportError):
                from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

                self.writer = SummaryWriter(str(Path(out.root) / FOLDER), flush_secs=10)

    def __call__(self, progress: TrainingProgress) -> None:
        if self.writer is None:
            return
        self.writer.add_scalar("train/loss", progress.loss, progress.step)
        self.writer.add_scalar("train/learning_rate", progress.learning_rate, progress.step)
        self.writer.add_scalar("train/seconds_waiting_for_data", progress.waited, progress.step)
        if progress.validation is None:
            return
        for name, figure in progress.validation.items():
            if isinstance(figure, float):
                self.writer.add_scalar(f"validation/{name}", figure, progress.step)
        for name, value in progress.validation["iou"].items():
            if value is not None:
                self.writer.add_scalar(f"iou/{name}", value, progress.step)
        if progress.samples:
            with suppress(OSError):  # a missing picture is no reason to end a training
                picture = np.asarray(Image.open(io.BytesIO(self.out.read(progress.samples))))
                self.writer.add_image("samples", picture, progress.step, dataformats="HWC")

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
