"""The copy that scores: folded, fused, and every network of the family says the same, also in bfloat16."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deeplab.convolutions import onednn
from deeplab.convolutions.dilated import few_outputs
from deeplab.devices import best_precision
from deeplab.scoring.batch_norm_folding import folded
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.settings import Scoring
from deeplab.zoo import ARCHITECTURES, build

NARROW = {"width": 1 / 16}


def smallest(name: str) -> nn.Module:
    try:
        return build(name, 4, **NARROW)
    except TypeError:  # residual networks have no such option
        return build(name, 4)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "101" not in name])
def test_a_folded_network_gives_the_same_scores_and_bfloat16_nearly(name, randomised, photo):
    network = randomised(smallest(name))
    side = 224 if name == "deconvnet" else 65
    x = torch.randn(1, 3, side, side)
    twin = folded(network)
    assert not [module for module in twin.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    quick, coarse = copy.deepcopy(twin), copy.deepcopy(twin).to(torch.bfloat16)
    for each in (quick, coarse):
        assert onednn.available(each)
        onednn.fuse(each)
        # What is left is what `deeplab.convolutions.dilated` computes in another way.
        assert all(few_outputs(module) for module in each.modules() if isinstance(module, nn.Conv2d))
    with torch.inference_mode():
        exact, ours, fast = network(x), twin(x), quick(x.to(memory_format=torch.channels_last))
        rough = coarse(x.to(torch.bfloat16, memory_format=torch.channels_last)).float()
    assert float((ours - exact).abs().max() / exact.abs().max()) < 1e-4
    assert float((fast - exact).abs().max() / exact.abs().max()) < 1e-4
    assert rough.shape == exact.shape
    # Two of three digits of bfloat16 through up to fifty layers, and never equal: it was used.
    assert 0 < float((rough - exact).norm() / exact.norm()) < 0.15


def test_where_pytorch_has_no_fused_convolutions_the_predictor_does_without(monkeypatch, small_network, photo):
    images = [photo(40, 33), photo(65, 80)]
    with_them = Predictor(small_network(), Scoring(precision="float32"), device="cpu").scores(images)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    without = Predictor(small_network(), Scoring(precision="float32"), device="cpu")
    assert not [module for module in without.network.modules() if isinstance(module, onednn.FusedConv)]
    for one, other in zip(with_them, without.scores(images), strict=True):
        torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(other), rtol=0.01, atol=0.01)


def test_the_network_that_was_given_stays_as_it_is(randomised, photo):
    network = randomised(build("mobilenet-v2-aspp", 3))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    Predictor(network, Scoring(precision="bfloat16"), device="cpu").scores([photo(40, 33)])
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(("bf16", "amx", "wanted"), [(0, 0, "float32"), (1, 0, "bfloat16"), (0, 1, "bfloat16")])
def test_a_cpu_takes_bfloat16_where_it_has_instructions_for_it(monkeypatch, small_network, bf16, amx, wanted):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(bf16))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    assert Predictor(small_network(), device="cpu").precision == wanted
    assert best_precision(torch.device("cuda")) == "float16"
