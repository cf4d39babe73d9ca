"""What a core hour buys, in one word: draft, standard or best. docs/performance.md has the seconds and mIoU of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deeplab.scoring.settings import PLAIN, Quality, Scoring

if TYPE_CHECKING:
    from deeplab.crf.engine import Mode


@dataclass(frozen=True)
class Settings:
    """What a quality sets. `output_stride`: of the network where it can take it; None is the one that its card names.

    `several_scales`: score at several scales: those that the network was trained to fuse, else `scoring`'s.
    """

    crf_mode: Mode
    output_stride: int | None = None
    scoring: Scoring = PLAIN
    several_scales: bool = False

    def scoring_of(self, training: Mapping[str, Any]) -> Scoring:
        """How a network is applied; `training`: that entry of its card, {} if it has none."""
        if self.several_scales and training.get("objective", "single") != "single":
            return replace(self.scoring, scales=tuple(map(float, training["loss_scales"])), fusion="max")
        return self.scoring


QUALITIES: Mapping[Quality, Settings] = {
    "draft": Settings("half", output_stride=16),
    "standard": Settings("fast"),
    "best": Settings("fast", scoring=Scoring(scales=(0.75, 1.0, 1.25), flip=True, fusion="mean"), several_scales=True),
}
