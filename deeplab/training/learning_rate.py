"""Learning-rate policies of the papers, as factors of the base rate."""

from __future__ import annotations


def poly(step: int, steps: int, power: float = 0.9) -> float:
    """(1 - step/steps)^power (arXiv 1606.00915, section 4.1.1): 1 at step 0, 0 at `steps`."""
    return float((1.0 - min(step, steps) / steps) ** power)


def staircase(step: int, every: int, gamma: float = 0.1) -> float:
    """gamma^floor(step/every): Caffe's "step" policy (DeepLab v1: every 2000, gamma 0.1)."""
    return float(gamma ** (step // every))


def warmup(step: int, steps: int) -> float:
    """Rises linearly to 1 over the first `steps` steps, then stays 1; always 1 if `steps` is 0."""
    return min(1.0, (step + 1) / (steps + 1)) if steps else 1.0
