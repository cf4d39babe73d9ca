"""A model's card, model.json: what must be known to use a model, and where it comes from."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

FORMAT = "deeplab-model/1"
Rule = Literal["mean", "product"]  # how the scores of an ensemble's members become one (deeplab.scoring.model_predictor)


class CardArchitecture(TypedDict):
    """The zoo's name of a network, and its options."""

    name: str
    options: NotRequired[dict[str, Any]]


class CardClass(TypedDict):
    """A class and its colour (R, G, B, 0..255); the position in the list is its id."""

    name: str
    colour: list[int]


class CardMember(TypedDict):
    """One model of an ensemble: its label when it was taken in, and its own card."""

    label: str
    card: Card


class CardEnsemble(TypedDict):
    """An ensemble's members, whose weights have the keys 0.KEY, 1.KEY, ... in the one weights file, and their rule."""

    rule: Rule
    members: list[CardMember]


class Card(TypedDict):
    """model.json: what must be known to use a model, and where it comes from. An ensemble has no architecture of its own."""

    format: str
    name: str
    architecture: NotRequired[CardArchitecture]
    ensemble: NotRequired[CardEnsemble]
    proposals: NotRequired[dict[str, Any]]
    classes: list[CardClass]
    geometry: NotRequired[dict[str, Any]]  # entries of deeplab.placement.Geometry that differ from the architecture's
    summary: NotRequired[str]
    licence: NotRequired[str]
    data: NotRequired[dict[str, Any]]
    training: NotRequired[dict[str, Any]]
    metrics: NotRequired[dict[str, Any]]
    crf: NotRequired[dict[str, Any]]
    quantization: NotRequired[dict[str, Any]]
    weights_sha256: NotRequired[str]
