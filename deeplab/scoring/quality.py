"""What a core hour buys, in one word: draft, standard or best. docs/performance.md has the seconds and mIoU of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deeplab.scoring.settings import PLAIN, Quality, Scoring

if TYPE_CHECKING:
    from deeplab.crf.engine import Mode


@dataclass(frozen=True)
class Settings:
    """What a quality sets. `output_stride`: of the network where it can take it; None is the one that its card names.

    `trained_scales`: score at the scales that the network was trained with, if it was trained with several.
    """

    output_stride: int | None
    flip: bool
    trained_scales: bool
    crf_mode: Mode

    def scoring(self, training: Mapping[str, Any]) -> Scoring:
        """How a network is applied; `training`: that entry of its card, {} if it has none."""
        several = self.trained_scales and training.get("objective", "single") != "single"
        scales = tuple(float(scale) for scale in training["loss_scales"]) if several else PLAIN.scales
        return Scoring(scales=scales, flip=self.flip)


QUALITIES: Mapping[Quality, Settings] = {
    "draft": Settings(output_stride=16, flip=False, trained_scales=False, crf_mode="half"),
    "standard": Settings(output_stride=None, flip=False, trained_scales=False, crf_mode="fast"),
    "best": Settings(output_stride=8, flip=True, trained_scales=True, crf_mode="exact"),
}
