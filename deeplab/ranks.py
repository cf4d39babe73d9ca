"""One or many processes that train together: the only place that knows how many there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from deeplab.errors import UserError

T = TypeVar("T")


class Ranks:
    """This process among `size` of them; `rank` 0 reads and writes. Alone, every call is a plain one.

    With several, torch.distributed must be initialised (by Ray Train, torchrun or a test); `device` is where this
    one computes, and where NCCL wants the tensors that are exchanged.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        several = distributed.is_available() and distributed.is_initialized()
        self.rank, self.size = (distributed.get_rank(), distributed.get_world_size()) if several else (0, 1)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over the ranks after each backward pass."""
        if self.size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        # Weights are equal by construction (one seed, or one state); statistics of batch norm are frozen or synchronised.
        return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)

    def apart(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Backward passes of a wrapped `module` in this context only add up: the next one outside of it exchanges the sum."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the ranks."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return total.tolist()

    def sum_counts(self, counts: np.ndarray) -> np.ndarray:
        """An int64 array summed over the ranks."""
        if self.size == 1:
            return counts
        total = torch.from_numpy(counts.copy()).to(self.device)
        distributed.all_reduce(total)
        return total.cpu().numpy()

    def any(self, flag: bool) -> bool:
        """Whether the flag is raised on any rank."""
        return self.sum([float(flag)])[0] > 0

    def on_first(self, work: Callable[[], T]) -> T:
        """Do `work` on rank 0; what it returns there, every rank has, and a UserError that it raises there, all raise."""
        if self.size == 1:
            return work()
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = work()
            except UserError as error:
                box[1] = error
        distributed.broadcast_object_list(box, src=0, device=self.device if self.device.type == "cuda" else None)
        if box[1] is not None:
            raise box[1]
        return box[0]
