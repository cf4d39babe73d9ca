"""Batches of training crops, read and augmented ahead by loader processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import torch
from PIL import _imaging
from torch.utils.data import DataLoader, default_collate

from deeplab.devices import available_cpus
from deeplab.errors import UserError
from deeplab.training.sampling import Samples, Shares

GRACE_SECONDS = 120  # from SIGTERM until a loader process ends by itself if its parent has not ended it
KEPT_BLOCKS = 8  # of memory that a loader process does not give back: each is a picture, at most 16 MB of one

MOST_LOADERS = 8  # by default: over 800 crops of 321 a second

Batch = tuple[torch.Tensor, torch.Tensor]


def default_loaders(device: torch.device) -> int:
    """Loader processes of a worker that computes on `device`, from 1 to MOST_LOADERS.

    On a GPU its share of the machine's CPUs, less one for the loop. On a CPU one: a core makes more crops in a second than all
    of them train on, and the steps need the rest.
    """
    if device.type == "cpu":
        return 1
    workers = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of this machine, by Ray Train and by torchrun
    return min(MOST_LOADERS, max(1, available_cpus() // workers - 1))


def batches_of(samples: Samples, shares: Shares, loaders: int, device: torch.device) -> Iterator[Batch]:
    """Batches of the shares in order. Errors in files are one line, even from a loader process."""
    # Clients of object stores do not survive a fork.
    context = "forkserver" if loaders and samples.data.remote else None
    loader = DataLoader(
        samples,
        batch_sampler=shares,
        num_workers=loaders,
        pin_memory=device.type == "cuda",
        worker_init_fn=_prepare_loader,
        collate_fn=_batch,
        multiprocessing_context=context,
    )
    try:
        yield from loader
    except UserError as error:
        lines = str(error).strip().splitlines()
        raise type(error)(lines[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")) from error


def _batch(samples: list[Batch]) -> Batch:
    """Crops as one batch whose pixels stay in the order of pictures, which is torch's channels_last."""
    images, labels = default_collate([(image.permute(1, 2, 0), labels) for image, labels in samples])
    return images.permute(0, 3, 1, 2), labels


def _prepare_loader(worker: int) -> None:
    """In a loader process: keep memory between pictures, and leave it to the parent to end this process.

    Pillow takes new memory from the system for each picture otherwise, which is slower than what is done to most pictures.
    Ctrl-C, a closed terminal, systemd and Slurm signal the parent and its children alike, but the parent needs batches until
    it has saved its state. Then it ends the loaders, which also end if it dies.
    """
    _imaging.set_blocks_max(KEPT_BLOCKS)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # SIGTERM is also the parent's last resort, so it takes effect, but late.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
