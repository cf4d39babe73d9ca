"""How a run is spread over a cluster: what is chosen from its cores, GPUs and memory, and why."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.cluster.connection import Resources

# What a process that scores comes to (`benchmarks/memory.py`: 1.8 GB with the bundled model and photos of up to 1000 x 1000; larger
# networks and images take more). Where memory is short, fewer work at a time and none is killed.
PROCESS_BYTES = 2 << 30
# Ray Data costs the driver 3 to 8 ms a block, so a block should hold a second of work or more; what dies with a process is a block.
# About 5 s of `pets` on a core, and a third of a second on a GPU that scores 800 images a second.
CORE_BLOCK, GPU_BLOCK = (128, 4 << 20), (256, 64 << 20)


@dataclass(frozen=True)
class Parallelism:
    """How a run is spread.

    On CPUs a task on every core does all of an image's way, and its process, with the network in it, serves the next block.
    With GPUs `scorers` actors hold one each and stop at the scores; every CPU refines. Nodes that join later are used as well.
    `slots`: how many tasks or scorers work at the start; `cores`: of the cluster then; `cpus`, `memory`: what a CPU task asks of
    its node.
    """

    block_images: int
    block_bytes: int
    slots: int
    cores: int
    cpus: float
    memory: float
    scorers: int | None = None
    scorer_cpus: float = 0.0


def parallelism(cluster: Resources) -> Parallelism:
    """The parallelism for what a cluster has.

    One thread a process: two processes of one thread score more than one of two, and need no cores to wait for each other.
    What is read ahead is the same everywhere (`pipelines.segment.read_ahead`), as two windows of images hide a store's delay.
    """
    cores = max(1, int(cluster.cpus))
    if cluster.gpus < 1:
        # Ray starts a task where a node has a core and the memory for it, so nodes that join are used and small ones are spared.
        memory = min(PROCESS_BYTES, cluster.node_memory)
        slots = min(cores, int(cluster.memory / memory)) if memory else cores
        return Parallelism(*CORE_BLOCK, max(1, slots), cores, 1.0, memory)
    # A scorer keeps one CPU busy with decoding; where CPUs are scarce it leaves half of them to the other stages.
    slots = int(cluster.gpus)
    scorer = min(1.0, cluster.cpus / (2 * slots))
    return Parallelism(*GPU_BLOCK, slots, cores, min(1.0, cluster.cpus - slots * scorer), 0.0, slots, scorer)
