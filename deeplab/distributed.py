"""One or more processes that train together; only this module knows how many there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar, cast

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from deeplab.errors import UserError

T = TypeVar("T")


class Ranks:
    """This process, one of `size`; `rank` 0 reads and writes. A single process exchanges nothing.

    With several, torch.distributed must be initialised (by Ray Train, torchrun or a test). `device` is where this
    process computes, and where NCCL expects the tensors to exchange.
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

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        """In this context gradients of a wrapped `module` accumulate; the next backward pass outside it exchanges the sum."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the ranks."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return [float(value) for value in total]

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
        """Do `work` on rank 0. Every rank returns its result, or raises the UserError that it raised."""
        if self.size == 1:
            return work()
        outcome: list[tuple[T | None, UserError | None]] = [(None, None)]
        if self.first:
            try:
                outcome[0] = work(), None
            except UserError as error:
                outcome[0] = None, error
        distributed.broadcast_object_list(outcome, src=0, device=self.device if self.device.type == "cuda" else None)
        result, refusal = outcome[0]
        if refusal is not None:
            raise refusal
        return cast(T, result)
