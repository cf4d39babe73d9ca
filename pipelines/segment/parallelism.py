"""How a run is spread over a cluster, chosen from its cores, GPUs and memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.cluster.connection import Resources

# Memory of a process that scores (`benchmarks/memory.py`: 1.8 GB with a bundled model and photos of up to 1000 x 1000; larger
# images take more). If memory is short, fewer processes run at a time and none is killed.
PROCESS_BYTES = 2 << 30
# For each byte of a weights file beyond a bundled model's: the file, its float32 network, and the predictor's copy. An EDeconvNet
# of 773 MB took 4.2 GB.
BUNDLED_WEIGHTS, BYTES_PER_WEIGHT = 8 << 20, 5
# A block costs Ray Data's driver 3 to 8 ms, so it should hold a second of work or more. A process that dies loses one block:
# about 5 s of `pets` on a core, and a third of a second on a GPU that scores 800 images a second.
CORE_BLOCK, GPU_BLOCK = (128, 4 << 20), (256, 64 << 20)


@dataclass(frozen=True)
class Parallelism:
    """How a run is spread.

    On CPUs a task on every core runs all stages of an image, and its process keeps the network for the next block.
    With GPUs, each of `scorers` actors holds one GPU and stops at the scores; every CPU refines. Nodes that join later are used
    as well. `slots`: tasks or scorers that work at the start; `cores`: the cluster's cores then; `cpus`, `memory` (bytes): what a
    CPU task requests from its node.
    """

    block_images: int
    block_bytes: int
    slots: int
    cores: int
    cpus: float
    memory: float
    scorers: int | None = None
    scorer_cpus: float = 0.0


def parallelism(cluster: Resources, weights: int = 0) -> Parallelism:
    """The parallelism for the resources of a cluster. `weights`: bytes of the model's weights file.

    One thread per process: two processes of one thread score more than one process of two threads, and no core waits for another.
    """
    cores = max(1, int(cluster.cpus))
    if cluster.gpus < 1:
        # Ray starts a task on any node with a free core and enough memory: nodes that join are used, small ones not overloaded.
        memory = min(PROCESS_BYTES + BYTES_PER_WEIGHT * max(0, weights - BUNDLED_WEIGHTS), cluster.node_memory)
        slots = min(cores, int(cluster.memory / memory)) if memory else cores
        return Parallelism(*CORE_BLOCK, max(1, slots), cores, 1.0, memory)
    # A scorer keeps one CPU busy with decoding; if CPUs are scarce it leaves half of them to the other stages.
    slots = int(cluster.gpus)
    scorer = min(1.0, cluster.cpus / (2 * slots))
    return Parallelism(*GPU_BLOCK, slots, cores, min(1.0, cluster.cpus - slots * scorer), 0.0, slots, scorer)
