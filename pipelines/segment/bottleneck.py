"""Which stage bounds a run, and what would help: one sentence from the seconds that its stages took."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.segment.parallelism import Parallelism

# Below this share of their time at work, processes mostly waited, and no stage can be blamed.
BUSY = 0.5
HELP = {
    "score": "a GPU, more cores or fewer --scales",
    "refine": "more cores, --crf-mode fast or --no-crf",
    "encode": "more cores",
    "large": "more cores or a smaller --tile",
}


def bound(seconds: Mapping[str, float], wall: float, parallelism: Parallelism) -> str:
    """A sentence on a run of `wall` seconds whose stages took `seconds`, summed over processes; empty for a run that did nothing.

    Reading and decoding go on beside the network in threads of their own, so they count as waiting where they are late.
    """
    work = {stage: seconds.get(stage, 0.0) for stage in (*HELP, "refine_gpu")}
    if wall <= 0 or not any(work.values()):
        return ""
    if parallelism.scorers is not None:
        return _with_gpus(work, wall, parallelism.scorers, parallelism.cores)
    slots = parallelism.slots
    busy = sum(work.values())
    if busy < BUSY * slots * wall:
        late = "reading was slow: a nearer store" if seconds.get("read", 0.0) > busy else "workers were starting: more images a run"
        return f"waiting: the {slots} cores were at work {busy / (slots * wall):.0%} of the time; {late} would help"
    stage = max(work, key=lambda name: work[name])
    return f"{stage}: {work[stage] / busy:.0%} of the work; {HELP[stage]} would help"


def _with_gpus(work: Mapping[str, float], wall: float, scorers: int, tasks: int) -> str:
    gpu, cpu = work["score"] + work["large"] + work["refine_gpu"], work["refine"] + work["encode"]
    of_gpus, of_cores = gpu / (scorers * wall), cpu / (tasks * wall)
    if max(of_gpus, of_cores) < BUSY:
        return f"waiting: GPUs were at work {of_gpus:.0%} and cores {of_cores:.0%} of the time; more images a run would help"
    if of_gpus >= of_cores:
        both = f"{scorers} GPUs were at work {of_gpus:.0%} of the time, {tasks} cores {of_cores:.0%}"
        refined = " (they refined, too)" if work["refine_gpu"] else ""
        return f"score: {both}{refined}; more GPUs would help"
    cores = max(tasks + 1, round(cpu / (gpu / scorers))) if gpu else tasks + 1
    return f"refine: cores were at work {of_cores:.0%} of the time, GPUs {of_gpus:.0%}; about {cores} cores would keep up with them"
