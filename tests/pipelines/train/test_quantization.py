"""`deeplab quantize`: a model folder gets ranges that say float32's labels, or stays as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deeplab.errors import UserError
from deeplab.images.decoding import decode
from deeplab.models import checkpoint
from deeplab.models.checkpoint import ModelError
from deeplab.networks.network import SegmentationNetwork
from deeplab.networks.resnet import BLOCKS
from deeplab.scoring.int8.codes import Int8Error
from deeplab.scoring.int8.onednn_network import available
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.settings import Scoring
from deeplab.zoo import build
from pipelines.options import QuantizeOptions, SegmentOptions
from pipelines.segment import run
from pipelines.train.quantization import quantize
from tests.material import EXAMPLES

PHOTOS = EXAMPLES / "images"


def save(folder: Path, network: SegmentationNetwork, name: str = "mine") -> Path:
    card = {**checkpoint.read_card("pets"), "name": name}
    card.pop("quantization", None)
    checkpoint.save(folder, network, card)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """`pets` as a training leaves a model: without ranges."""
    network = checkpoint.load("pets").network
    network.quantization = None
    return save(tmp_path_factory.mktemp("models") / "mine", network)


@pytest.fixture(scope="module")
def quantized(plain, tmp_path_factory) -> tuple[Path, dict[str, object]]:
    """The same with ranges from four of the examples, and what the command says."""
    folder = tmp_path_factory.mktemp("models") / "quantized"
    options = QuantizeOptions(
        model=str(plain), photos=str(PHOTOS), out=str(folder), count=6, dataset=str(EXAMPLES), split="val", least=0.98
    )
    return folder, quantize(options)


def test_the_copy_has_ranges_another_label_and_the_measured_figures_in_its_card(plain, quantized):
    folder, result = quantized
    model, before = checkpoint.load(folder), checkpoint.load(plain)
    assert before.network.quantization is None and model.network.quantization is not None
    assert result["model"] == model.label != before.label == result["was"]
    entry = model.card["quantization"]
    assert (entry["photos"], entry["held_back"]) == (4, 2)
    assert 0.98 <= entry["labels_equal_worst"] <= entry["labels_equal"] < 1
    assert entry["mean_iou"]["images"] == 6
    assert abs(entry["mean_iou"]["int8"] - entry["mean_iou"]["float32"]) < 0.01
    for key, value in before.network.state_dict().items():
        assert value.equal(model.network.state_dict()[key]), key


def test_the_weights_are_those_of_the_folder_bit_by_bit(tmp_path):
    """Also those that are stored in float32, as an import's."""
    network = checkpoint.load("pets").network
    with torch.no_grad():
        network.backbone.features[0][0].weight += 1e-5
    card = checkpoint.read_card("pets")
    network.quantization = None
    checkpoint.save(tmp_path / "one", network, {**card, "name": "one"}, half=False)
    quantize(QuantizeOptions(model=str(tmp_path / "one"), photos=str(PHOTOS), count=2, least=0.5))
    stored = load_file(tmp_path / "one" / checkpoint.WEIGHTS)
    assert all(stored[key].equal(value) for key, value in network.state_dict().items()) and len(stored) > len(network.state_dict())


def test_a_change_of_the_card_and_a_save_keep_the_ranges(quantized, tmp_path):
    copy = Path(shutil.copytree(quantized[0], tmp_path / "copy"))
    checkpoint.note(copy, summary="another")
    model = checkpoint.load(copy)
    assert model.network.quantization is not None
    checkpoint.save(tmp_path / "again", model.network, model.card)
    assert (tmp_path / "again" / checkpoint.WEIGHTS).read_bytes() == (copy / checkpoint.WEIGHTS).read_bytes()


def test_ranges_of_another_model_are_refused(quantized, tmp_path):
    copy = Path(shutil.copytree(quantized[0], tmp_path / "copy"))
    tensors = load_file(copy / checkpoint.WEIGHTS)
    tensors["backbone.features.0.0.weight"] = tensors["backbone.features.0.0.weight"] + 1
    save_file(tensors, copy / checkpoint.WEIGHTS)
    with pytest.raises(ModelError, match="int8 ranges are those of other weights; `deeplab quantize` writes them again"):
        checkpoint.load(copy)


def test_too_little_agreement_is_refused_with_the_figure_and_nothing_is_written(plain, tmp_path):
    options = QuantizeOptions(model=str(plain), photos=str(PHOTOS), out=str(tmp_path / "out"), count=2, least=1.0)
    with pytest.raises(UserError, match=r"int8 gives 9\d\.\d\d% of float32's labels on 1 photo .* at least 100.00% is wanted"):
        quantize(options)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_quantized_is_one_line(plain, tmp_path):
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    for folder in (empty, broken):
        folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (broken / name).write_bytes(b"no photo")
    other = save(tmp_path / "other", build("mobilenet-v3-aspp-v3", 3), "other")
    card = checkpoint.read_card(other)
    card["architecture"] = {"name": "mobilenet-v3-aspp-v3"}
    checkpoint.note(other, architecture=card["architecture"])
    for model, photos, message in (
        (plain, empty, "holds 0 photos; two or more"),
        (plain, broken, "a.jpg: cannot be used"),
        ("pets", PHOTOS, "pets is bundled and never changes: -o OUT writes a copy"),
        (other, PHOTOS, "MobileNetV2 networks .* this network is of another kind"),
    ):
        with pytest.raises(UserError, match=message):
            quantize(QuantizeOptions(model=str(model), photos=str(photos)))


@pytest.mark.skipif(not available(), reason="a processor with VNNI is needed")
def test_a_resnet_is_quantized_scored_and_refused_alike(monkeypatch, tmp_path):
    """With random weights and few blocks: another way computes it, all else is the same."""
    monkeypatch.setitem(BLOCKS, 50, (1, 1, 1, 1))
    folder = save(tmp_path / "resnet", build("resnet50-plain", 3, seed=0, output_stride=16), "resnet")
    checkpoint.note(folder, architecture={"name": "resnet50-plain", "options": {"output_stride": 16}})
    before = checkpoint.load(folder).label
    options = QuantizeOptions(model=str(folder), photos=str(PHOTOS), count=2, least=1.0)
    with pytest.raises(UserError, match=r"at least 100\.00% is wanted"):
        quantize(options)
    assert checkpoint.load(folder).label == before
    result = quantize(options.model_copy(update={"least": 0.9}))
    model = checkpoint.load(folder)
    assert result["model"] == model.label != before and 0.9 <= model.card["quantization"]["labels_equal"] < 1
    photo = decode((PHOTOS / "Bengal_105.jpg").read_bytes())
    int8, exact = (Predictor(model.network, Scoring(precision=p), device="cpu").labels([photo])[0] for p in ("int8", "float32"))
    assert (int8 == exact).mean() > 0.9
    assert run.begin(SegmentOptions(archive=str(PHOTOS), results=str(tmp_path), model=str(folder), precision="int8"))


def test_int8_without_ranges_says_how_to_make_them(plain, tmp_path):
    with pytest.raises(Int8Error, match="this model has no ranges for it; `deeplab quantize MODEL PHOTOS`"):
        run.begin(SegmentOptions(archive=str(PHOTOS), results=str(tmp_path), model=str(plain), precision="int8"))
    with pytest.raises(Int8Error, match="no ranges"):
        Predictor(checkpoint.load(plain).network, Scoring(precision="int8"))
    photo = decode((PHOTOS / "Bengal_105.jpg").read_bytes())
    assert Predictor(checkpoint.load(plain).network).labels([photo])[0].shape == photo.shape[:2]  # all else needs none
