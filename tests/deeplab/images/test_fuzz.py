"""Broken variants of valid images end as pixels or a refusal, in bounded memory. `benchmarks/fuzz.py` takes many more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from deeplab.images.decoding import decode
from tests.mutations import seeds, variants

DECODE_ALL = """
import json, resource
from deeplab.errors import ImageError
from deeplab.images.decoding import decode
from tests.mutations import variants

seen = {"ok": 0, "refused": 0}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, data in variants(1000, seed=1):
    try:
        pixels = decode(data)
        assert pixels.ndim == 3 and pixels.size, name
        seen["ok"] += 1
    except ImageError as error:
        assert len(str(error).splitlines()) == 1, (name, str(error))
        seen["refused"] += 1
print(json.dumps({**seen, "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024}))
"""


def test_the_images_that_are_broken_here_are_valid() -> None:
    for name, data in seeds().items():
        assert decode(data).shape in ((72, 96, 3), (96, 72, 3)), name


def test_variants_are_the_same_for_the_same_seed_and_differ_from_the_valid_images() -> None:
    made = list(variants(100))
    assert made == list(variants(100))
    valid = set(seeds().values())
    assert sum(data in valid for _, data in made) < 10


def test_a_thousand_broken_images_end_as_pixels_or_a_refusal_in_bounded_memory() -> None:
    """In a process of its own, so that a crash in a decoder fails this test and not all of them."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DECODE_ALL],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout)
    assert min(seen["ok"], seen["refused"]) > 100
    assert seen["ok"] + seen["refused"] == 1000
    assert seen["megabytes"] < 900  # 60 million pixels in four channels, and once more as RGB
