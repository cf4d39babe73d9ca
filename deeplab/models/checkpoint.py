"""A model is a folder: model.safetensors (the weights) and model.json (its card)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from deeplab.classes import ClassTable
from deeplab.crf.parameters import PARAMETER_SETS, CRFParameters
from deeplab.errors import UserError
from deeplab.files import STAGED, Files, LocalFiles, as_files
from deeplab.models.quantized_weights import taken_apart, with_quantization
from deeplab.networks.network import SegmentationNetwork
from deeplab.safe_names import InvalidName, model_name
from deeplab.zoo import build

FORMAT = "deeplab-model/1"
WEIGHTS, CARD = "model.safetensors", "model.json"
WEIGHTS_DIGEST = "weights_sha256"  # key in the card: the weights that it belongs to
TRAINING = "training.json"  # the record of the training run that writes a folder (deeplab.training.saved_states)
BUNDLED = Path(__file__).parent


class ModelError(UserError):
    """A model cannot be used; the message names the folder, what is wrong and what is accepted."""


class CardArchitecture(TypedDict):
    """The zoo's name of a network, and its options."""

    name: str
    options: NotRequired[dict[str, Any]]


class CardClass(TypedDict):
    """A class and its colour (R, G, B, 0..255); the position in the list is its id."""

    name: str
    colour: list[int]


class Card(TypedDict):
    """model.json: what must be known to use a model, and where it comes from."""

    format: str
    name: str
    architecture: CardArchitecture
    classes: list[CardClass]
    summary: NotRequired[str]
    licence: NotRequired[str]
    data: NotRequired[dict[str, Any]]
    training: NotRequired[dict[str, Any]]
    metrics: NotRequired[dict[str, Any]]
    crf: NotRequired[dict[str, Any]]
    quantization: NotRequired[dict[str, Any]]
    weights_sha256: NotRequired[str]


@dataclass
class Model:
    """A loaded model: the network (evaluation mode, CPU), its classes and card, and its digest."""

    name: str
    network: SegmentationNetwork
    classes: ClassTable
    card: Card
    digest: str

    @property
    def label(self) -> str:
        """Name @ first 12 of the digest: how the results table names the model."""
        return f"{self.name}@{self.digest[:12]}"

    def crf(self, name: str) -> CRFParameters:
        """One of PARAMETER_SETS, or "card": the parameters tuned for this model. ModelError if the card has none."""
        if name != "card":
            return PARAMETER_SETS[name]
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in self.card["crf"]["parameters"].items()}
            return CRFParameters(**values)
        except KeyError:
            raise ModelError(f"{self.label}: its card has no CRF parameters; `deeplab tune-crf` finds and writes them") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"{self.label}: the CRF parameters of its card are not valid ({error})") from error


def bundled() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CARD}"))


def find(reference: str | Path) -> Path:
    """The folder of a bundled model's name or of a path. Raises ModelError if there is neither."""
    if str(reference) in bundled():
        return BUNDLED / str(reference)
    path = Path(reference)
    if not path.exists():
        raise ModelError(f"no model {reference}: give a model folder or one of the bundled models: {', '.join(bundled())}")
    if path.is_file():
        raise ModelError(f"{path} is a file; a model is a folder with {WEIGHTS} and {CARD} (pickles are never loaded)")
    return path


def read_card(reference: str | Path) -> Card:
    """The card of a model, without its weights; raises ModelError like `load`."""
    folder = find(reference)
    return _parse_card(folder, _read(folder, CARD))


def load(reference: str | Path) -> Model:
    """Load a model folder or a bundled model by name.

    Raises ModelError if a file is missing or damaged, the format is of another version, or the weights do not fit the
    architecture in every key and shape.
    """
    return parse(*read(reference))


def read(reference: str | Path) -> tuple[Path, bytes, bytes]:
    """A model's folder and the bytes of its card and weights, from which `parse` makes the model, here or on a worker."""
    folder = find(reference)
    return folder, _read(folder, CARD), _read(folder, WEIGHTS)


def parse(folder: Path, card_bytes: bytes, weight_bytes: bytes) -> Model:
    """The model from what `read` returns; `folder` only names it in errors. Raises ModelError like `load`."""
    card = _parse_card(folder, card_bytes)
    try:
        tensors = load_tensors(weight_bytes)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"{folder / WEIGHTS}: not a safetensors file or damaged ({error}); pickles are never loaded") from error
    try:
        tensors, quantization = taken_apart(tensors)
    except ValueError as error:
        raise ModelError(f"{folder / WEIGHTS}: {error}; `deeplab quantize` writes them again") from error
    try:
        classes = ClassTable(
            tuple(entry["name"] for entry in card["classes"]),
            tuple(cast(tuple[int, int, int], tuple(entry["colour"])) for entry in card["classes"]),
        )
        network = build(card["architecture"]["name"], len(classes), **card["architecture"].get("options", {}))
        name = str(card["name"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / CARD}: {error!r}; the card does not describe a model of this version") from error
    expected = network.state_dict()
    differences = [f"{key} missing" for key in expected if key not in tensors]
    differences += [f"{key} unknown" for key in tensors if key not in expected]
    differences += [
        f"{key} is {tuple(tensors[key].shape)}, not {tuple(value.shape)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if differences:
        shown = "; ".join(differences[:4])
        raise ModelError(f"{folder}: {len(differences)} weights do not fit {card['architecture']['name']}: {shown}")
    network.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in tensors.items()})
    if not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values() if value.is_floating_point()):
        raise ModelError(f"{folder / WEIGHTS}: holds weights that are not finite")
    if card.get(WEIGHTS_DIGEST) not in (None, hashlib.sha256(weight_bytes).hexdigest()):
        raise ModelError(
            f"{folder}: {CARD} does not belong to these weights: the model is being saved, or a save was interrupted; "
            "wait, or save it again"
        )
    network.quantization = quantization
    return Model(name, network.eval(), classes, card, digest(weight_bytes, card_bytes))


def replaceable(folder: Path) -> bool:
    """Whether a model may be written there: no folder, an empty one, an earlier or incomplete model, or a training's."""
    if not folder.exists() or (folder / CARD).exists() or (folder / TRAINING).exists():
        return True
    return folder.is_dir() and {path.name for path in folder.iterdir() if not STAGED.fullmatch(path.name)} <= {WEIGHTS}


def storable(network: SegmentationNetwork) -> bool:
    """Whether all weights stay finite when `save` stores them: matrices and kernels in half precision."""
    return all(bool(torch.isfinite(value).all()) for value in _stored(network).values() if value.is_floating_point())


def _stored(network: SegmentationNetwork) -> dict[str, torch.Tensor]:
    return {
        key: (value.half() if value.is_floating_point() and value.ndim > 1 else value).detach().cpu().contiguous()
        for key, value in network.state_dict().items()
    }


def save(place: str | Path | Files, network: SegmentationNetwork, card: Mapping[str, Any]) -> None:
    """Write a model folder. Convolution weights go to float16; vectors stay float32; the network's quantization is kept.

    `card` needs name, architecture {name, options} and classes [{name, colour}]; `format` and the weights' digest are set
    here. An existing model folder is replaced. ModelError for any other folder, weights that are not finite, and a name
    that deeplab.safe_names.model_name refuses. If the save is interrupted, the place holds the old model, the new one, or new
    weights without their card, which `parse` refuses; saving again completes it.
    """
    place = as_files(place)
    try:
        model_name(card["name"])
    except InvalidName as error:
        raise ModelError(f"{place}: not saved: {error}") from error
    if not storable(network):
        raise ModelError(f"{place}: not saved: some weights are not finite in half precision")
    if isinstance(place, LocalFiles) and not replaceable(place.root):
        raise ModelError(f"{place} exists and is not a model folder; choose another folder")
    weights = save_tensors(with_quantization(_stored(network), network.quantization))
    if place.has(CARD) and WEIGHTS_DIGEST.encode() not in place.read(CARD):
        place.remove(CARD)  # it has no digest (an earlier version's), so it would seem to belong to the new weights
    place.write(WEIGHTS, weights)
    place.write(CARD, _card_bytes({**card, WEIGHTS_DIGEST: hashlib.sha256(weights).hexdigest()}))


def note(place: str | Path | Files, **entries: object) -> str:
    """Set entries of a model's card atomically and return the model's new digest.

    Without entries the card is rewritten unchanged, which tests whether it can be. Raises ModelError if it cannot.
    """
    place = as_files(place)
    try:
        data = place.read(CARD)
        card = _card_bytes({**_parse_card(Path(str(place)), data), **entries}) if entries else data
        place.write(CARD, card)
        return digest(place.read(WEIGHTS), card)
    except OSError as error:
        raise ModelError(f"{place}: {CARD} cannot be written ({error.strerror or error})") from error


def _card_bytes(card: Mapping[str, object]) -> bytes:
    return (json.dumps({"format": FORMAT, **card}, indent=2, ensure_ascii=False) + "\n").encode()


def digest(weights: bytes, card: bytes) -> str:
    """SHA-256 (hex) over weights and card: a change of either makes another model."""
    return hashlib.sha256(hashlib.sha256(weights).digest() + hashlib.sha256(card).digest()).hexdigest()


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ModelError(f"{folder}: {name} cannot be read ({error.strerror}); a model folder has {WEIGHTS} and {CARD}") from error


def _parse_card(folder: Path, data: bytes) -> Card:
    try:
        card: Card = json.loads(data)
    except ValueError as error:
        raise ModelError(f"{folder / CARD}: not JSON ({error})") from error
    version = card.get("format") if isinstance(card, dict) else None
    if version != FORMAT:
        raise ModelError(f"{folder / CARD}: format {version!r}; this version reads {FORMAT!r}")
    if "name" in card:
        try:
            model_name(card["name"])
        except InvalidName as error:
            raise ModelError(f"{folder / CARD}: {error}") from error
    return card
