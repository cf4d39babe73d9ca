"""The cost of the pipeline itself per image (`python benchmarks/scale.py pipeline`).

The network is one 1 x 1 convolution and the photos are small (toy.py), so what is left is the pipeline: threads, Ray, rows, files,
commits. The CPU seconds of all processes of the run are counted. A plain loop over the same photos with the same
functions gives the cost of reading, decoding, scoring and encoding alone.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import toy
from measure import SessionTime, apart, machine, peak_memory

WINDOW = 16  # images that the loop scores together, as the pipeline does
LOOP = 3000
BAR = 0.1  # CPU ms per image


def loop(archive: Path, model: Path) -> dict[str, float]:
    """CPU milliseconds per image of each stage in a plain loop, one thread."""
    import torch

    from deeplab import masks
    from deeplab.images.decoding import decode
    from deeplab.models import checkpoint
    from deeplab.scoring.predictor import Predictor

    toy.register()
    torch.set_num_threads(1)
    loaded = checkpoint.load(model)
    predictor = Predictor(loaded.network)
    paths = [path for number in range(LOOP // 1000) for path in sorted((archive / f"{number:04d}").iterdir())]
    spent = dict.fromkeys(("read", "decode", "score", "refine", "encode"), 0.0)
    results = []
    for start in range(0, len(paths), WINDOW):
        marks = [time.process_time()]
        encoded = [path.read_bytes() for path in paths[start : start + WINDOW]]
        marks.append(time.process_time())
        images = [decode(data) for data in encoded]
        marks.append(time.process_time())
        scores = predictor.scores(images)
        marks.append(time.process_time())
        labels = [predictor.labels_of(s, *image.shape[:2]) for s, image in zip(scores, images, strict=True)]
        marks.append(time.process_time())
        results += [(masks.encode_png(label, loaded.classes), masks.class_pixels(label, loaded.classes)) for label in labels]
        marks.append(time.process_time())
        if start:  # the first window warms up
            for stage, begin, end in zip(spent, marks, marks[1:], strict=False):
                spent[stage] += end - begin
    return {stage: 1000 * seconds / (len(paths) - WINDOW) for stage, seconds in spent.items()}


def segment(archive: Path, model: Path, folder: Path, count: int, every: float) -> dict[str, Any]:
    """CPU and wall seconds of every step of a run over the first `count` photos, in this process's own session."""
    os.setsid()
    (folder / "work").mkdir(parents=True)
    watch = SessionTime()
    steps: dict[str, dict[str, Any]] = {}
    last: dict[str, Any] = {"cpu": watch.now(), "wall": time.perf_counter()}

    def step(name: str) -> None:
        now: dict[str, Any] = {"cpu": watch.now(), "wall": time.perf_counter()}
        spent = {kind: seconds - last["cpu"].get(kind, 0.0) for kind, seconds in now["cpu"].items()}
        cpu = {kind: round(seconds, 2) for kind, seconds in spent.items() if seconds > 0}
        steps[name] = {"cpu": sum(cpu.values()), "wall": now["wall"] - last["wall"], "by": cpu}
        last.update(now)

    from pipelines.cluster import connection
    from pipelines.options import SegmentOptions
    from pipelines.segment import run as run_steps
    from pipelines.segment import stream  # noqa: F401 (what the driver imports is no part of the stream's cost)

    places: dict[str, Any] = {"archive": str(archive), "results": str(folder / "results"), "model": str(model)}
    run = toy.begin(SegmentOptions(**places, crf=False, limit=count, commit_every=every))
    step("imports")
    listed = run_steps.take_inventory(run, folder / "work")
    step("inventory")
    todo = run_steps.make_plan(run, listed, folder / "work")
    step("plan")
    with connection.session():
        step("start")
        outcome = run_steps.execute(run, todo)
        step("stream")
    step("stop")
    summary = run_steps.check(run, listed, todo, outcome)
    step("check")
    watch.stop()
    assert (summary.images, summary.errors) == (count, 0)
    stages = dict(summary.seconds_by_stage)
    return {"images": count, "steps": steps, "stages": stages, "commits": summary.commits, "driver_mb": peak_memory()}


def cpu_of(measured: dict[str, Any], name: str) -> float:
    """CPU milliseconds per image of a step."""
    return float(1000 * measured["steps"][name]["cpu"] / measured["images"])


AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def shares(measured: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of the stream by process: the driver; actors, ours and Ray Data's; tasks that write files; all that
    works on images; Ray's own processes and the start of workers."""
    parts = dict.fromkeys(("driver", "actors", "writing", "work", "Ray"), 0.0)
    for kind, seconds in measured["steps"]["stream"]["by"].items():
        if kind == "driver":
            name = "driver"
        elif not kind.startswith("ray::") or kind in AGENTS:
            name = "Ray"
        elif "write_blocks" in kind:
            name = "writing"
        elif "whole" in kind or kind == SessionTime.IDLE:
            name = "work"
        else:
            name = "actors"
        parts[name] += seconds
    return parts


def split(images: list[int], seconds: list[float]) -> str:
    """The fixed cost of a run and the cost of each image, by least squares."""
    import numpy as np

    fixed, per_image = np.linalg.lstsq(np.array([[1.0, count] for count in images]), np.array(seconds), rcond=None)[0]
    return f"{fixed:.1f} s of CPU, and {1000 * per_image:.3f} ms for each image"


def report(runs: list[dict[str, Any]], loop_ms: dict[str, float]) -> None:
    print(machine())
    print("loop, CPU ms per image: " + ", ".join(f"{stage} {value:.2f}" for stage, value in loop_ms.items()))
    print("CPU ms per image; `bare` is beyond decode and encode, `way` beyond all that the loop does")
    print(f"{'images':>8} {'inventory':>9} {'plan':>7} {'stream':>7} {'check':>7} {'bare':>7} {'way':>7}  driver  commits")
    for run in runs:
        costs = {name: cpu_of(run, name) for name in ("inventory", "plan", "stream", "check")}
        bare = sum(costs.values()) - loop_ms["decode"] - loop_ms["encode"]
        way = sum(costs.values()) - sum(loop_ms.values())
        print(f"{run['images']:8} {costs['inventory']:9.3f} {costs['plan']:7.3f} {costs['stream']:7.2f} {costs['check']:7.3f} "
              f"{bare:7.2f} {way:7.2f}  {run['driver_mb']:.0f} MB  {run['commits']}")  # fmt: skip
    print(f"the stream by process, CPU ms per image; the bar at 100,000 images is {BAR} for the driver and the actors together")
    for run in runs:
        per_image = {name: 1000 * seconds / run["images"] for name, seconds in shares(run).items()}
        central = per_image["driver"] + per_image["actors"]
        named = ", ".join(f"{name} {value:.3f}" for name, value in per_image.items())
        verdict = "" if run["images"] < 100_000 else ", kept" if central <= BAR else ", BROKEN"
        print(f"{run['images']:8} {named}; driver and actors {central:.3f}{verdict}")
    start = [sum(run["steps"][name]["cpu"] for name in ("imports", "start", "stop")) for run in runs]
    once = ", ".join(f"{seconds:.1f}" for seconds in start)
    print(f"once a run: {once} s of CPU (imports, start and stop of Ray), not in the tables")
    if len(runs) > 1:
        images, parts = [run["images"] for run in runs], [shares(run) for run in runs]
        print("a stream:", split(images, [sum(part.values()) for part in parts]))
        print("its driver and actors:", split(images, [part["driver"] + part["actors"] for part in parts]))


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """CPU ms per image of every step over the number of images, both axes logarithmic."""
    from math import log10

    colours = {"stream": "#2e6eb4", "inventory": "#c44e52", "plan": "#52965a", "check": "#8c60aa"}
    left, right, top, bottom, low, high = 70, 560, 40, 320, -3.0, 1.0
    first, last = (log10(pick(run["images"] for run in runs)) for pick in (min, max))

    def place(images: float, value: float) -> tuple[float, float]:
        x = left + (right - left) * (log10(images) - first) / max(last - first, 1e-9)
        return round(x, 1), round(bottom - (bottom - top) * (log10(max(value, 1e-3)) - low) / (high - low), 1)

    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 370" font-family="sans-serif" font-size="13" fill="#202024">'
    ]
    lines.append('<rect width="680" height="370" fill="#fff"/><text x="70" y="22">CPU milliseconds per image, by step</text>')
    for power in range(int(low), int(high) + 1):
        y = place(10**first, 10.0**power)[1]
        lines.append(f'<line x1="{left}" x2="{right}" y1="{y}" y2="{y}" stroke="#dedee2"/>')
        lines.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{10.0**power:g}</text>')
    for run in runs:
        lines.append(f'<text x="{place(run["images"], 1)[0]}" y="{bottom + 20}" text-anchor="middle">{run["images"]:,}</text>')
    lines.append(f'<text x="{(left + right) / 2}" y="{bottom + 42}" text-anchor="middle">images in the run</text>')
    for name, colour in colours.items():
        dots = [place(run["images"], cpu_of(run, name)) for run in runs]
        points = " ".join(f"{x},{y}" for x, y in dots)
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in dots]
        lines.append(f'<text x="{right + 12}" y="{dots[-1][1] + 4}" fill="{colour}">{name}</text>')
    path.write_text("\n".join([*lines, "</svg>", ""]))


def run(folder: Path, sizes: list[int], every: float, picture: Path | None, data: Path | None) -> None:
    measured = json.loads(data.read_text()) if data and data.exists() else {}
    missing = [count for count in sizes if str(count) not in measured]
    if missing or "loop" not in measured:
        model = apart(toy.make_model, folder / "model").result
        archive = apart(toy.make_photos, folder / "photos", max([*missing, LOOP])).result
        measured["loop"] = apart(loop, archive, model).result
        for count in missing:
            measured[str(count)] = apart(segment, archive, model, folder / str(count), count, every).result
            print(json.dumps(measured[str(count)]), flush=True)
            if data:
                data.write_text(json.dumps(measured))
    runs = [measured[str(count)] for count in sizes]
    report(runs, measured["loop"])
    if picture:
        plot(runs, picture)
