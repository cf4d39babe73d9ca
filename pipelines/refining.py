"""Where a run with GPUs refines: on the cores beside them or, where it measures faster, on the GPUs themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The measurement starts a process and takes some twenty seconds, which a run of fewer images would hardly get back.
WORTH_MEASURING = 2000


def on_gpus(seconds: Mapping[str, float], refine_device: float, cores: float, gpus: float) -> bool:
    """Whether images become rows faster when the GPUs refine, too.

    seconds: decode, score, refine (the native engine on one core) and encode of one image; refine_device: the CRF on the
    GPU. cores: those that are not the scorers' own. In the one way the GPUs score while the cores decode again, refine and encode;
    in the other each GPU's process does everything but the decoding, one image after the other.
    """
    beside = min(gpus / seconds["score"], cores / (seconds["decode"] + seconds["refine"] + seconds["encode"]))
    return gpus / (seconds["score"] + refine_device + seconds["encode"]) > beside


def on_device(crf: Mapping[str, Any]) -> dict[str, Any]:
    """The CRF's arguments for this process's GPU: exact, and sums in a fixed order, so that repeated blocks give the same masks."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {**crf, "mode": "exact", "backend": "torch", "device": device, "deterministic": True}


def measure(
    source: Any, predictor: Mapping[str, Any], crf: Mapping[str, Any], count: int = 4, size: tuple[int, int] = (375, 500)
) -> tuple[dict[str, float], float]:
    """`seconds` and `refine_device` of `on_gpus`, from made-up photos; to be run where a GPU is.

    source: what `checkpoint.read` returned. predictor: scales, flip and precision, among others.
    """
    from deeplab import checkpoint, speed
    from deeplab.crf import DenseCRF

    model = checkpoint.parse(*source)
    found = speed.measure(
        model.network,
        model.classes,
        speed.pictures(count, *size),
        scales=predictor["scales"],
        flip=predictor["flip"],
        precision=predictor["precision"],
        crf=DenseCRF(**{**crf, "backend": "native"}),
        crf_on_device=DenseCRF(**on_device(crf)),
        rounds=1,
    )
    assert found.refine_device is not None
    return found.seconds, found.refine_device


def chosen(backend: str, model: Any, predictor: Mapping[str, Any], crf: Mapping[str, Any], images: int) -> bool:
    """Whether the scorers of this run refine; `backend` as in SegmentOptions, `model` an object reference. Asks the cluster."""
    import ray
    import torch

    from pipelines import cluster
    from pipelines.layout import layout

    cpus, gpus = cluster.resources()
    spread = layout(cpus, gpus, cluster.memory(), images)
    if spread.scorers is None or backend not in ("auto", "torch"):
        return False
    if backend == "torch":
        return True
    if images < WORTH_MEASURING:
        return False
    try:
        seconds, device = ray.get(ray.remote(num_gpus=1, num_cpus=0)(measure).remote(model, predictor, crf))
    except torch.OutOfMemoryError:  # too small a GPU for the CRF of a photo; what it scores the cores can refine
        return False
    return on_gpus(seconds, device, max(0.1, cpus - spread.scorers * spread.scorer_cpus), spread.scorers)
