"""What programs hand over by mistake: one clear error, or the right mask."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deeplab
from deeplab.errors import UserError
from deeplab.models import checkpoint
from deeplab.segmentation.options import MaskOptions

PLAIN = {"crf": False, "output_stride": 16, "precision": "float32"}


def test_a_loop_that_fills_one_array_again_gets_the_mask_of_each_image() -> None:
    segmenter = deeplab.load("pets", device="cpu")
    pictures = np.random.default_rng(0).integers(0, 256, (4, 33, 41, 3), np.uint8)

    def camera() -> Iterator[np.ndarray]:
        buffer = np.empty((33, 41, 3), np.uint8)
        for picture in pictures:
            buffer[:] = picture
            yield buffer

    alone = [segmenter.segment(picture, **PLAIN).confidence for picture in pictures]
    assert [mask.confidence for mask in segmenter.segment(camera(), **PLAIN)] == alone
    assert len(set(alone)) == 4


def test_what_is_no_image_is_one_error_and_a_bad_one_among_many_costs_no_other(model: Path) -> None:
    segmenter = deeplab.load(str(model), device="cpu")
    empty, good = Image.new("RGB", (0, 0)), np.zeros((9, 9, 3), np.uint8)
    with pytest.raises(deeplab.ImageError, match="shape"):
        segmenter.segment(empty, **PLAIN)
    assert [mask.error is None for mask in segmenter.segment([good, empty, good], **PLAIN)] == [True, False, True]
    for wrong in (io.BytesIO(b"x\ny"), {"a": 1}, 5):
        with pytest.raises(TypeError, match="is accepted"):
            segmenter.segment(wrong, **PLAIN)
    png = io.BytesIO()
    Image.fromarray(good).save(png, "PNG")
    assert segmenter.segment(bytearray(png.getvalue()), **PLAIN).labels.shape == (9, 9)


@pytest.mark.parametrize(
    "options",
    [{"crf": "no"}, {"crf": None}, {"output_stride": 8.0}, {"output_stride": "8"}, {"flip": "yes"}, {"scales": "1"}, {"scales": 1}],
)
def test_an_option_of_another_type_is_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=next(iter(options))):
        MaskOptions.named(**options)


def test_a_model_is_not_saved_into_a_folder_that_is_called_like_a_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = checkpoint.load("pets")
    with pytest.raises(UserError, match="a folder of this machine is accepted"):
        checkpoint.save(Path("s3://bucket/model"), loaded.network, loaded.card)
    assert not list(tmp_path.iterdir())
