"""How a chunk is spread over a cluster: what is chosen from its cores, GPUs and memory, and why."""

from __future__ import annotations

from dataclasses import dataclass

# What a process that scores comes to (`benchmarks/memory.py`: 1.8 GB with the bundled model and photos of up to 1000 x 1000; larger
# networks and images take more). Where memory is short, fewer work at a time and none is killed.
PROCESS_BYTES = 2 << 30


@dataclass(frozen=True)
class Layout:
    """How one chunk is spread.

    On CPUs a task on every core does all of an image's way, and its process, with the network in it, serves the next block
    and the next chunk. With GPUs `scorers` actors hold one each and stop at the scores; every CPU refines.
    `tasks`: how many at a time; `cpus`: what each of them holds.
    """

    images_per_block: int
    tasks: int
    cpus: float
    write_cpus: float
    scorers: int | None = None
    scorer_cpus: float = 0.0


def layout(cpus: float, gpus: float, memory: float, images: int) -> Layout:
    """The layout for a cluster's CPUs, GPUs and bytes of memory, and a chunk's images.

    One thread a process: two processes of one thread score more than one of two, and need no cores to wait for each other.
    What is read ahead is the same everywhere (`pipelines.loading`), as two windows of images hide a store's delay.
    """
    on_gpu = gpus >= 1
    slots = int(gpus) if on_gpu else max(1, int(min(cpus, memory / PROCESS_BYTES)))
    # Ray Data costs about 10 ms a block, so a block should hold a second of work or more. Above that, small blocks keep
    # all slots busy to the end of a chunk and lose little when one dies.
    least, most = (16, 256) if on_gpu else (8, 64)
    per_block = max(1, min(most, max(least, images // (16 * slots)), -(-images // slots)))
    # A write task packs finished rows and needs next to no core, but must start while all others are taken.
    if not on_gpu:
        return Layout(per_block, slots, 0.9, 0.1)
    # A scorer keeps one CPU busy with decoding; where CPUs are scarce it leaves half of them to the other stages.
    scorer = min(1.0, cpus / (2 * slots))
    scorers = max(1, min(slots, -(-images // per_block)))
    return Layout(per_block, max(1, int(cpus)), min(1.0, cpus - slots * scorer - 0.1), 0.1, scorers, scorer)
