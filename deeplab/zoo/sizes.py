"""The size of a network: parameters and floating-point operations, counted without allocating memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from deeplab.zoo import ARCHITECTURES, build


@dataclass(frozen=True)
class Size:
    """One architecture for 21 classes. `parameters`: learnt ones; `gflop`: 1e9 operations, of which a multiply-add is two."""

    name: str
    stride: int
    parameters: int
    gflop: float
    field_of_view: int
    val: float | None
    val_crf: float | None
    test: float | None
    note: str
    source: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def measure(name: str, classes: int = 21, side: int = 513) -> Size:
    """Build `name` on torch's meta device and count the operations for one image of side x side."""
    with torch.device("meta"), torch.no_grad():
        network = build(name, classes).eval()
        counter = FlopCounterMode(display=False)
        with counter:
            network(torch.empty(1, 3, side, side))
    entry = ARCHITECTURES[name]
    return Size(
        name,
        network.stride,
        sum(p.numel() for p in network.parameters() if p.requires_grad),
        counter.get_total_flops() / 1e9,
        entry.field_of_view,
        entry.val,
        entry.val_crf,
        entry.test,
        entry.note,
        entry.source,
    )


def measure_all() -> list[Size]:
    """The sizes of all architectures."""
    return [measure(name) for name in ARCHITECTURES]
