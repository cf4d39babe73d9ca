"""A model folder's predictor: of its network, of its network by proposals, or of all members of an ensemble."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from deeplab.models.card import Rule
from deeplab.models.checkpoint import Model
from deeplab.networks.deconvnet import SIDE
from deeplab.networks.network import SegmentationNetwork
from deeplab.scoring.full_resolution import FullResolutionPredictor
from deeplab.scoring.interface import AnyPredictor
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.proposals import ProposalPredictor
from deeplab.scoring.settings import PLAIN, Scoring


def predictor_of(
    model: Model, scoring: Scoring = PLAIN, *, device: str = "auto", score_dtype: torch.dtype = torch.float16
) -> AnyPredictor:
    """What scores images with a model. `score_dtype`: of scores at a network's stride; those at every pixel are float32.

    Raises ProposalsUnavailable if the model needs proposals and OpenCV is missing.
    """
    if model.members:
        assert model.rule is not None
        members = [predictor_of(member, scoring, device=device, score_dtype=torch.float32) for member in model.members]
        return EnsemblePredictor(members, model.rule, scoring)
    if model.proposals is not None:
        return ProposalPredictor(model.network, model.proposals, scoring, device=device)
    return Predictor(model.network, scoring, device=device, score_dtype=score_dtype)


class EnsemblePredictor(FullResolutionPredictor):
    """The scores of several predictors of the same classes, each upsampled to the image, combined by a rule."""

    def __init__(self, members: Sequence[AnyPredictor], rule: Rule, scoring: Scoring = PLAIN) -> None:
        self.members, self.rule = members, rule
        super().__init__(scoring, members[0].device, members[0].precision, members[0].dtype)

    def scores_of(self, image: np.ndarray) -> np.ndarray:
        """One member's scores at a time are in memory, beside their combination."""
        size = image.shape[:2]
        return combined((member.upsampled(member.scores([image])[0], *size) for member in self.members), self.rule)


def combined(maps: Iterable[np.ndarray], rule: Rule) -> np.ndarray:
    """The scores of several networks, C x H x W each -> their combination, float32.

    "mean" is EDeconvNet's rule (arXiv 1505.04366, section 4.4); "product" its released demo's: the first network's scores
    times the positive ones of the others. ValueError for maps of different shapes.
    """
    count = 0
    for scores in maps:
        if not count:
            total = scores.astype(np.float32)
        elif scores.shape != total.shape:
            raise ValueError(f"scores of {total.shape} and {scores.shape}: one shape is accepted")
        elif rule == "mean":
            total += scores
        else:
            total *= np.maximum(scores, 0)
        count += 1
    return total / count if rule == "mean" else total


@dataclass(frozen=True)
class Passes:
    """How often a network scores an image of a size."""

    network: SegmentationNetwork
    height: int
    width: int
    times: int = 1


def passes(model: Model, height: int, width: int) -> Iterator[Passes]:
    """What scoring one image takes at scale 1; an image may have fewer proposals."""
    if model.members:
        for member in model.members:
            yield from passes(member, height, width)
    elif model.proposals is not None:
        yield Passes(model.network, SIDE, SIDE, model.proposals.count)
    else:
        yield Passes(model.network, height, width)
