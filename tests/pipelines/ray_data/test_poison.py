"""An image that kills its process, inside anyone's own pipeline: it becomes an error, and the rest of its batch is done."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from pipelines.ray_data import Segmenter
from pipelines.segment import read_ahead
from tests.material import photo

POISON = b"poison"


class Dying(Segmenter):
    """A Segmenter whose process ends when it decodes POISON."""

    def __init__(self, model: str, **options: Any) -> None:
        super().__init__(model, **options)
        decode = read_ahead.decode

        def deadly(data: bytes, max_pixels: int) -> np.ndarray:
            return os._exit(1) if data == POISON else decode(data, max_pixels)

        read_ahead.decode = deadly


@pytest.mark.drill
@pytest.mark.usefixtures("running_ray")
def test_an_image_that_kills_its_process_is_given_up_and_the_rest_is_done(model: Path) -> None:
    images = [photo(0), photo(1), POISON, photo(2)]
    dataset = ray.data.from_arrow(pa.table({"bytes": pa.array(images, pa.binary())}))
    found = dataset.map_batches(
        Dying,
        fn_constructor_kwargs={"model": str(model), "crf": False},
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    errors = [row["error"] for row in found.take_all()]
    assert errors[:2] == [None, None] and errors[3] is None
    assert errors[2].startswith("process: it ended 3 times while it worked on this image alone")
