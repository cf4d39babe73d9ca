"""A model is a folder: model.safetensors (the weights) and model.json (its card)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from deeplab.classes import ClassTable
from deeplab.crf.parameters import PARAMETER_SETS, CRFParameters
from deeplab.errors import UserError
from deeplab.files import STAGED, Files, LocalFiles, as_files
from deeplab.models.card import FORMAT, Card, CardMember, Rule
from deeplab.models.quantized_weights import taken_apart, with_quantization
from deeplab.networks.network import SegmentationNetwork
from deeplab.placement import Geometry
from deeplab.region_proposals import Proposals
from deeplab.safe_names import InvalidName, model_name
from deeplab.zoo import ARCHITECTURES, build

WEIGHTS, CARD = "model.safetensors", "model.json"
WEIGHTS_DIGEST = "weights_sha256"  # key in the card: the weights that it belongs to
TRAINING = "training.json"  # the record of the training run that writes a folder (deeplab.training.saved_states)
BUNDLED = Path(__file__).parent
OUTPUT_STRIDES = (8, 16, 32)


class ModelError(UserError):
    """A model cannot be used; the message names the folder, what is wrong and what is accepted."""


@dataclass
class Model:
    """A loaded model: the network (evaluation mode, CPU), its classes and card, and its digest.

    `proposals`: how the network is applied box by box, if it is. `members`, `rule`: of an ensemble, which has no network.
    `output_stride`: of `at_stride`; None is the one that the card names.
    """

    name: str
    own_network: SegmentationNetwork | None
    classes: ClassTable
    card: Card
    digest: str
    proposals: Proposals | None = None
    members: tuple[Model, ...] = ()
    rule: Rule | None = None
    output_stride: int | None = None

    @property
    def network(self) -> SegmentationNetwork:
        """The one network. ModelError for an ensemble."""
        if self.own_network is None:
            members = ", ".join(member.label for member in self.members)
            raise ModelError(f"{self.label} is an ensemble ({members}) and has no network of its own: give one of its members")
        return self.own_network

    @property
    def networks(self) -> tuple[SegmentationNetwork, ...]:
        """All networks: the one, or those of all members."""
        return (self.network,) if not self.members else tuple(network for member in self.members for network in member.networks)

    @property
    def stride(self) -> int:
        """Pixels from score to score: 1 for proposals and ensembles."""
        return 1 if self.members else self.network.stride

    @property
    def geometry(self) -> Geometry:
        """How images are padded and scaled, and where scores lie; an ensemble's lie on the pixels."""
        return Geometry() if self.members or self.proposals is not None else self.network.geometry

    @property
    def by_proposals(self) -> bool:
        """Whether scoring takes region proposals, which need OpenCV."""
        return self.proposals is not None or any(member.by_proposals for member in self.members)

    @property
    def label(self) -> str:
        """Name @ first 12 of the digest: how the results table names the model."""
        return f"{self.name}@{self.digest[:12]}"

    def at_stride(self, output_stride: int) -> Model:
        """The same weights in a network of another output stride: later strides become dilations, or the reverse.

        ModelError if its architecture, or that of a member, is not made for that.
        """
        if self.members:
            return replace(
                self, members=tuple(member.at_stride(output_stride) for member in self.members), output_stride=output_stride
            )
        name, options = self.card["architecture"]["name"], self.card["architecture"].get("options", {})

        def at(stride: int) -> SegmentationNetwork:
            return build(name, len(self.classes), **{**options, "output_stride": stride})

        try:
            network = at(output_stride)
        except (TypeError, ValueError) as error:
            accepted = []
            for stride in OUTPUT_STRIDES:
                with suppress(TypeError, ValueError), torch.device("meta"):
                    at(stride)
                    accepted.append(str(stride))
            strides = (
                f"{', '.join(accepted)} {'are' if len(accepted) > 1 else 'is'} accepted" if accepted else "it has only its own"
            )
            raise ModelError(f"{self.label}: {name} cannot have output stride {output_stride}; {strides}") from error
        network.load_state_dict(self.network.state_dict())
        network.geometry, network.quantization = self.network.geometry, self.network.quantization
        return replace(self, own_network=network.eval(), output_stride=output_stride)

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
        kind = "it is an architecture, which becomes a model by `deeplab train`; " if str(reference) in ARCHITECTURES else ""
        raise ModelError(f"no model {reference}: {kind}give a model folder or one of the bundled models: {', '.join(bundled())}")
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
    model = _assembled(folder, card, tensors, digest(weight_bytes, card_bytes))
    if card.get(WEIGHTS_DIGEST) not in (None, hashlib.sha256(weight_bytes).hexdigest()):
        raise ModelError(
            f"{folder}: {CARD} does not belong to these weights: the model is being saved, or a save was interrupted; "
            "wait, or save it again"
        )
    return model


def _assembled(folder: Path, card: Card, tensors: Mapping[str, torch.Tensor], sha256: str) -> Model:
    """The model of a card and its weights. Raises ModelError."""
    try:
        tensors, quantization = taken_apart(tensors)
    except ValueError as error:
        raise ModelError(f"{folder / WEIGHTS}: {error}; `deeplab quantize` writes them again") from error
    try:
        classes = ClassTable(
            tuple(entry["name"] for entry in card["classes"]),
            tuple(cast(tuple[int, int, int], tuple(entry["colour"])) for entry in card["classes"]),
        )
        name = str(card["name"])
        if "ensemble" in card:
            if (rule := card["ensemble"]["rule"]) not in get_args(Rule):
                raise ValueError(f"rule {rule!r}: {' and '.join(map(repr, get_args(Rule)))} are accepted")
            members = _members(folder, card["ensemble"]["members"], tensors)
            for member in members:
                require_same_classes(name, classes, member.label, member.classes)
            return Model(name, None, classes, card, sha256, members=members, rule=rule)
        proposals = Proposals(**card["proposals"]) if "proposals" in card else None
        architecture = card["architecture"]
        network = build(architecture["name"], len(classes), **architecture.get("options", {}))
        network.geometry = replace(network.geometry, **card.get("geometry", {}))
        if proposals is not None and network.stride != 1:
            raise ValueError(
                f"proposals need a network that scores every pixel, {architecture['name']} has stride {network.stride}"
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder / CARD}: {error!r}; the card does not describe a model of this version") from error
    _fill(folder, network, tensors, architecture["name"])
    network.quantization = quantization
    return Model(name, network.eval(), classes, card, sha256, proposals)


def _members(folder: Path, entries: Sequence[CardMember], tensors: Mapping[str, torch.Tensor]) -> tuple[Model, ...]:
    """The members of an ensemble. ModelError, which names the member, if one is gone or does not fit."""
    parts: dict[str, dict[str, torch.Tensor]] = {str(index): {} for index in range(len(entries))}
    for key, value in tensors.items():
        index, _, own_key = key.partition(".")
        if index not in parts:
            raise ModelError(f"{folder}: {WEIGHTS} has weights of no member of the card ({key})")
        parts[index][own_key] = value
    members = []
    for number, (entry, part) in enumerate(zip(entries, parts.values(), strict=True), 1):
        label = str(entry["label"])
        if not part:
            raise ModelError(
                f"{folder}: member {label} ({number} of {len(entries)}) is gone: {WEIGHTS} has none of its weights; "
                "make the ensemble again with `deeplab ensemble`"
            )
        place = Path(f"{folder}, member {label}")
        members.append(_assembled(place, _checked(place, entry["card"]), part, label.rpartition("@")[2]))
    if len(members) < 2:
        raise ModelError(f"{folder / CARD}: an ensemble of {len(members)} models; two or more are accepted")
    return tuple(members)


def require_same_classes(one: str, classes: ClassTable, other: str, theirs: ClassTable) -> None:
    """ModelError, with the first difference, unless two models have the same class names in the same order."""
    if len(classes) != len(theirs):
        raise ModelError(f"{one} has {len(classes)} classes and {other} has {len(theirs)}; an ensemble's members have the same")
    for index, (name, their_name) in enumerate(zip(classes.names, theirs.names, strict=True)):
        if name != their_name:
            raise ModelError(
                f"class {index} is {name!r} in {one} and {their_name!r} in {other}; an ensemble's members have the same classes "
                "in the same order"
            )


def _fill(folder: Path, network: SegmentationNetwork, tensors: Mapping[str, torch.Tensor], architecture: str) -> None:
    """Load the weights, all of them. ModelError if they do not fit in every key and shape, or are not finite."""
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
        raise ModelError(f"{folder}: {len(differences)} weights do not fit {architecture}: {shown}")
    network.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in tensors.items()})
    if not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values() if value.is_floating_point()):
        raise ModelError(f"{folder / WEIGHTS}: holds weights that are not finite")


def replaceable(folder: Path) -> bool:
    """Whether a model may be written there: no folder, an empty one, an earlier or incomplete model, or a training's."""
    if not folder.exists() or (folder / CARD).exists() or (folder / TRAINING).exists():
        return True
    return folder.is_dir() and {path.name for path in folder.iterdir() if not STAGED.fullmatch(path.name)} <= {WEIGHTS}


def storable(network: SegmentationNetwork) -> bool:
    """Whether all weights stay finite when `save` stores them: matrices and kernels in half precision."""
    return _finite(_stored(network))


def _finite(stored: Mapping[str, torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in stored.values() if value.is_floating_point())


def _stored(network: SegmentationNetwork, half: bool = True) -> dict[str, torch.Tensor]:
    return {
        key: (value.half() if half and value.is_floating_point() and value.ndim > 1 else value).detach().cpu().contiguous()
        for key, value in network.state_dict().items()
    }


def save(place: str | Path | Files, network: SegmentationNetwork, card: Mapping[str, Any], half: bool = True) -> None:
    """Write a model folder. With `half`, convolution weights go to float16; vectors stay float32; a quantization is kept.

    `card` needs name, architecture {name, options} and classes [{name, colour}]; `format` and the weights' digest are set
    here. An existing model folder is replaced. ModelError for any other folder, weights that are not finite, and a name
    that deeplab.safe_names.model_name refuses. If the save is interrupted, the place holds the old model, the new one, or new
    weights without their card, which `parse` refuses; saving again completes it.
    """
    place = as_files(place)
    stored = _stored(network, half)
    if not _finite(stored):
        raise ModelError(f"{place}: not saved: some weights are not finite{' in half precision' if half else ''}")
    write(place, with_quantization(stored, network.quantization), card)


def write(place: str | Path | Files, tensors: dict[str, torch.Tensor], card: Mapping[str, Any]) -> None:
    """`save` for weights that are ready to be stored."""
    place = as_files(place)
    try:
        model_name(card["name"])
    except InvalidName as error:
        raise ModelError(f"{place}: not saved: {error}") from error
    if isinstance(place, LocalFiles) and not replaceable(place.root):
        raise ModelError(f"{place} exists and is not a model folder; choose another folder")
    weights = save_tensors(tensors)
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
    return _checked(folder, card)


def _checked(folder: Path, card: Card) -> Card:
    """The card. ModelError for a format of another version, and a name that is not accepted."""
    version = card.get("format") if isinstance(card, dict) else None
    if version != FORMAT:
        raise ModelError(f"{folder / CARD}: format {version!r}; this version reads {FORMAT!r}")
    if "name" in card:
        try:
            model_name(card["name"])
        except InvalidName as error:
            raise ModelError(f"{folder / CARD}: {error}") from error
    return card
