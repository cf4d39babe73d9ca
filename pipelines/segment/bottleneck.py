"""Which stage limits the speed of a run, and what would help, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.segment.parallelism import Parallelism

# Processes that work for a smaller share of their time mostly wait, and no stage is to blame.
BUSY = 0.5
HELP = {
    "score": "a GPU, more cores or fewer --scales",
    "refine": "more cores, --crf-mode fast or half, or --no-crf",
    "encode": "more cores",
    "large": "more cores or a smaller --tile",
}


def bound(seconds: Mapping[str, float], wall: float, parallelism: Parallelism) -> str:
    """One sentence on a run of `wall` seconds; empty for a run that did nothing. `seconds`: by stage, summed over processes.

    Images are read and decoded in threads beside the network, so slow reading shows up as waiting.
    """
    work = {stage: seconds.get(stage, 0.0) for stage in (*HELP, "refine_gpu")}
    if wall <= 0 or not any(work.values()):
        return ""
    if parallelism.scorers is not None:
        return _with_gpus(work, wall, parallelism.scorers, parallelism.cores)
    slots = parallelism.slots
    busy = sum(work.values())
    if busy < BUSY * slots * wall:
        slow_read = seconds.get("read", 0.0) > busy
        remedy = "reading was slow: a nearer store" if slow_read else "workers were starting: more images per run"
        return f"waiting: the {slots} cores were busy {busy / (slots * wall):.0%} of the time; {remedy} would help"
    stage = max(work, key=lambda name: work[name])
    return f"{stage}: {work[stage] / busy:.0%} of the work; {HELP[stage]} would help"


def _with_gpus(work: Mapping[str, float], wall: float, scorers: int, tasks: int) -> str:
    gpu, cpu = work["score"] + work["large"] + work["refine_gpu"], work["refine"] + work["encode"]
    gpu_share, core_share = gpu / (scorers * wall), cpu / (tasks * wall)
    if max(gpu_share, core_share) < BUSY:
        return f"waiting: GPUs were busy {gpu_share:.0%} and cores {core_share:.0%} of the time; more images per run would help"
    if gpu_share >= core_share:
        refined = " (the GPUs also refined)" if work["refine_gpu"] else ""
        busy = f"{scorers} GPUs were busy {gpu_share:.0%} of the time, {tasks} cores {core_share:.0%}{refined}"
        return f"score: {busy}; more GPUs would help"
    cores = max(tasks + 1, round(cpu / (gpu / scorers))) if gpu else tasks + 1
    busy = f"cores were busy {core_share:.0%} of the time, GPUs {gpu_share:.0%}"
    return f"refine: {busy}; about {cores} cores would keep up with the GPUs"
