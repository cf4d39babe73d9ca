"""What --quality and --output-stride change, and what they do not."""

from __future__ import annotations

import numpy as np
import pytest

from deeplab.models import checkpoint
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.quality import QUALITIES
from deeplab.scoring.settings import Scoring, alike
from pipelines.options import BenchmarkOptions


def test_scores_at_stride_16_are_every_second_score_at_stride_8() -> None:
    """With holes, the late layers at stride 8 are four interleaved copies of those at stride 16 (arXiv 1606.00915, section 3.1)."""
    model = checkpoint.load("pets")
    image = np.random.default_rng(0).integers(0, 256, (97, 129, 3), np.uint8)  # 16 k + 1: both lattices hold it
    fine, coarse = (
        Predictor(model.at_stride(stride).network, Scoring(precision="float32"), device="cpu").scores([image])[0].astype(np.float32)
        for stride in (8, 16)
    )
    assert coarse.shape == (3, 7, 9)
    np.testing.assert_allclose(fine[:, ::2, ::2], coarse, rtol=2e-3, atol=2e-3 * np.abs(coarse).max())


def test_another_stride_is_the_same_model() -> None:
    model = checkpoint.load("pets")
    assert model.at_stride(16).label == model.label
    assert (model.output_stride, model.at_stride(16).output_stride, model.at_stride(16).network.stride) == (None, 16, 16)


def test_a_quality_sets_what_is_not_set() -> None:
    model = checkpoint.load("pets")
    draft, best = BenchmarkOptions(quality="draft"), BenchmarkOptions(quality="best", flip=False, crf_mode="exact")
    refinement = draft.refinement(model)
    assert draft.prepared(model).network.stride == 16 and refinement is not None and refinement.mode == "half"
    assert best.scoring(model) == Scoring(scales=(0.75, 1.0, 1.25), fusion="mean")
    refinement = best.refinement(model)
    assert best.prepared(model) is model and refinement is not None and refinement.mode == "exact"
    assert BenchmarkOptions(quality="draft", output_stride=8).prepared(model).network.stride == 8


def test_a_network_of_one_stride_keeps_it_in_a_draft_and_a_model_trained_to_fuse_scales_gets_these(tmp_path) -> None:
    from deeplab import zoo

    network = zoo.build("fcn32s", 2, seed=0, width=1 / 64)
    classes = [{"name": name, "colour": [0, 0, 0]} for name in ("a", "b")]
    training = {"objective": "official", "loss_scales": [1.0, 0.75, 0.5]}
    card = {"name": "m", "architecture": {"name": "fcn32s", "options": {"width": 1 / 64}}, "classes": classes, "training": training}
    checkpoint.save(tmp_path / "m", network, card)
    model = checkpoint.load(tmp_path / "m")
    assert BenchmarkOptions(quality="draft").prepared(model) is model
    assert BenchmarkOptions(quality="best").scoring(model) == Scoring(scales=(1.0, 0.75, 0.5), flip=True, fusion="max")
    with pytest.raises(checkpoint.ModelError, match="fcn32s cannot have output stride 16; it has only its own"):
        BenchmarkOptions(output_stride=16).prepared(model)


@pytest.mark.parametrize("quality", QUALITIES)
def test_equal_settings_are_alike_whatever_word_chose_them_and_whatever_precision_auto_became(quality: str) -> None:
    text = Scoring().short(8, "bfloat16")
    assert alike(f"{quality} {text}", f"standard {text}", "bfloat16")
    assert alike(f"{quality} {text}", f"standard {Scoring().short(8, 'float16')}", "auto")
    assert not alike(text, Scoring().short(8, "float16"), "float16")
    assert not alike(text, Scoring(tile=513).short(8, "bfloat16"), "auto")
