"""Random, often wrong input to the CRF engine: every call must return a result of the right shape or raise ValueError.

    python benchmarks/crf_fuzz.py --minutes 60 [--seed 0]

A crash ends the process; the seed of the last line printed repeats it. docs/crf.md says how to run it under the sanitizers.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, Literal

import numpy as np

from deeplab.crf import DenseCRF
from deeplab.crf.native import engine_module

MODES: tuple[Literal["fast"], Literal["exact"], Literal["half"]] = ("fast", "exact", "half")
DTYPES = [np.float16, np.float32, np.float64, np.int32, np.uint8, np.complex64, bool]


def odd_float(rng: np.random.Generator) -> Any:
    """Mostly a sensible positive number, sometimes anything."""
    values = [0, -1, 1e-3, 1e-2, 0.5, 1e9, 1e30, float("nan"), float("inf"), "3", None, (1.0, 2.0), (3.0, 4.0, 5.0)]
    return values[rng.integers(len(values))] if rng.random() < 0.1 else float(np.exp(rng.normal(1, 2)))


def random_call(rng: np.random.Generator) -> str:
    """One call; returns its outcome in a word."""
    height, width, classes = int(rng.integers(0, 60)), int(rng.integers(0, 60)), int(rng.integers(0, 40))
    if rng.random() < 0.05:
        classes = int(rng.integers(250, 400))
    image: Any = rng.integers(0, 256, (height, width, 3 if rng.random() < 0.97 else 4), dtype=np.uint8)
    if rng.random() < 0.03:
        image = image.astype(np.float32)
    if rng.random() < 0.2:
        image = image[::-1, ::-1]
    stride = None if rng.random() < 0.5 else [1, 2, 4, 8, 8.5, 0, -3][rng.integers(7)]
    shape = (height, width)
    if stride is not None and stride > 0:
        rows, columns = (max(0, int(-(-(n - 1) // stride)) + 1 + int(rng.integers(-1, 2))) for n in shape)
        shape = (rows, columns)
    elif rng.random() < 0.05:
        shape = (height + 1, width)
    scores: Any = rng.normal(0, np.exp(rng.normal(1, 2)), (classes, *shape))
    if rng.random() < 0.1 and scores.size:
        scores.reshape(-1)[rng.integers(scores.size)] = [np.nan, np.inf, -np.inf, 1e38, -1e31][rng.integers(5)]
    probabilities = rng.random() < 0.3
    if probabilities and scores.size:
        scores = np.exp(scores - scores.max(0))
        scores = scores / scores.sum(0)
    with np.errstate(all="ignore"):
        scores = scores.astype(DTYPES[rng.integers(len(DTYPES))] if rng.random() < 0.1 else DTYPES[rng.integers(3)])
    if rng.random() < 0.1:
        scores = np.asfortranarray(scores)
    try:
        crf = DenseCRF(
            MODES[rng.integers(3)],
            iterations=int(rng.integers(-1, 6)),
            pos_w=odd_float(rng),
            pos_xy_std=odd_float(rng),
            bi_w=odd_float(rng),
            bi_xy_std=odd_float(rng),
            bi_rgb_std=odd_float(rng),
            normalization=["symmetric", "after", "before", "none"][rng.integers(4)],  # type: ignore[arg-type]
            threads=int(rng.integers(1, 4)),
            prune=float(rng.random() * 0.5),
            freeze=[0.0, 1e-6, 3e-4, 0.1][rng.integers(4)],
            build=str(rng.choice(["auto", *engine_module().builds])),  # type: ignore[arg-type]
            block_lanes=int(4 * rng.integers(1, 7)),
        )
        unary = {"probabilities": scores} if probabilities else {"scores": scores}
        options: dict[str, Any] = {"stride": stride, "align_corners": bool(rng.integers(2))}
        if rng.random() < 0.5:
            labels = crf.labels(image, **unary, **options)
            assert labels.shape == image.shape[:2]
            assert labels.max() < classes
        else:
            marginals = crf.marginals(image, **unary, **options)
            assert marginals.shape == (classes, *image.shape[:2])
            assert np.isfinite(marginals).all()
            assert np.abs(marginals.sum(0) - 1).max() < 1e-3
        return "done"
    except ValueError:
        return "refused"


def random_filter(rng: np.random.Generator) -> str:
    points, dimensions = int(rng.integers(0, 200)), int(rng.integers(0, 9))
    features = (rng.normal(0, np.exp(rng.normal(2, 3)), (points, dimensions))).astype(np.float32)
    if rng.random() < 0.1 and features.size:
        features.reshape(-1)[0] = [np.nan, np.inf, 1e30][rng.integers(3)]
    try:
        filtering = engine_module().Filter(features)
        values = rng.random((int(rng.integers(1, 30)), points)).astype(np.float32)
        out = np.empty((len(values), points + int(rng.random() < 0.1)), np.float32)
        filtering.apply(values, out)
        assert np.isfinite(out[:, :points]).all()
        return "filtered"
    except ValueError:
        return "refused"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    end, seed, outcomes = time.monotonic() + 60 * arguments.minutes, arguments.seed, {"done": 0, "refused": 0, "filtered": 0}
    while time.monotonic() < end:
        if seed % 500 == 0:
            print(f"seed {seed}: {outcomes}", flush=True)
        rng = np.random.default_rng(seed)
        try:
            outcomes[random_call(rng) if rng.random() < 0.9 else random_filter(rng)] += 1
        except BaseException:
            print(f"failed at seed {seed}", flush=True)
            raise
        seed += 1
    print(f"{seed - arguments.seed} calls without a failure: {outcomes}")


if __name__ == "__main__":
    main()
