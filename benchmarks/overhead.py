"""What the pipeline itself costs per image (`python benchmarks/scale.py pipeline`).

The model is one 1 x 1 convolution and the photos are small, so what is left is the way: threads, Ray, rows, files,
commits. All CPU seconds of all processes of the run are counted, and a plain loop over the same photos with the same
functions says what reading, decoding, scoring and encoding cost without the way.
"""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from typing import Any

from measure import SessionTime, apart, peak_memory

SIDE = 64
WINDOW = 16  # images that the loop scores together, as the pipeline does
LOOP = 3000


def register() -> Path:
    """Enter the architecture `pointwise` into this process's zoo. The path only names the model in errors."""
    from torch import nn

    from deeplab import zoo
    from deeplab.network import TENSORFLOW, SegmentationNetwork

    class Pointwise(nn.Conv2d):
        output_stride = 8

    def build(classes: int) -> SegmentationNetwork:
        return SegmentationNetwork(Pointwise(3, classes, 1, stride=8), nn.Identity(), classes, TENSORFLOW)

    zoo.ARCHITECTURES["pointwise"] = zoo.Architecture("pointwise", "one convolution", "none", build, 1)
    return Path("pointwise")


class Carried:
    """Travels in the place of the model's path and registers the architecture in the process where it arrives."""

    def __reduce__(self) -> tuple[Any, ...]:
        return register, ()


def make_model(folder: Path) -> Path:
    from deeplab import checkpoint, zoo
    from deeplab.classes import PETS

    register()
    classes = [{"name": name, "colour": list(colour)} for name, colour in zip(PETS.names, PETS.colours, strict=True)]
    card = {"name": "pointwise", "architecture": {"name": "pointwise", "options": {}}, "classes": classes}
    checkpoint.save(folder, zoo.build("pointwise", 3, seed=0), card)
    return folder


def make_photos(folder: Path, count: int) -> Path:
    """`count` JPEGs of SIDE x SIDE pixels, 1,000 a folder; a hundred different ones, each under its own name."""
    import numpy as np
    from PIL import Image

    different = []
    for seed in range(100):
        small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
        different.append(buffer.getvalue())
    for index in range(count):
        if index % 1000 == 0:
            (folder / f"{index // 1000:04d}").mkdir(parents=True)
        (folder / f"{index // 1000:04d}" / f"photo-{index:07d}.jpg").write_bytes(different[index % 100])
    return folder


def loop(archive: Path, model: Path) -> dict[str, float]:
    """CPU milliseconds per image of each stage in a plain loop, one thread."""
    import torch

    from deeplab import checkpoint, masks
    from deeplab.images import decode
    from deeplab.predictor import Predictor

    register()
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


def trivial(options: Any, folder: Path) -> Any:
    """A Segmentation whose model, made by `make_model`, is understood by the workers, too."""
    import overhead  # as a module by this name: what it defines travels by value
    from ray import cloudpickle

    from pipelines.segment import Segmentation

    cloudpickle.register_pickle_by_value(overhead)
    overhead.register()
    run = Segmentation(options, folder)
    run.source = (overhead.Carried(), *run.source[1:])  # type: ignore[assignment]
    return run


def segment(archive: Path, model: Path, folder: Path, count: int, chunk_size: int) -> dict[str, Any]:
    """CPU and wall seconds of every step of a run over the first `count` photos, in a session of this process's own."""
    os.setsid()
    from pipelines.options import SegmentOptions

    (folder / "work").mkdir(parents=True)
    options = SegmentOptions(
        archive=str(archive), results=str(folder / "results"), model=str(model), crf=False, limit=count, chunk_size=chunk_size
    )
    watch = SessionTime()
    steps: list[dict[str, Any]] = []
    last = {"cpu": watch.now(), "wall": time.perf_counter()}

    def step(name: str, images: int) -> None:
        now = {"cpu": watch.now(), "wall": time.perf_counter()}
        spent = {kind: seconds - last["cpu"].get(kind, 0.0) for kind, seconds in now["cpu"].items()}
        cpu = {kind: round(seconds, 2) for kind, seconds in spent.items() if seconds > 0}
        steps.append({"step": name, "images": images, "cpu": sum(cpu.values()), "wall": now["wall"] - last["wall"], "by": cpu})
        last.update(now)

    run = trivial(options, folder / "work")
    step("imports", 0)
    run.take_inventory()
    step("inventory", count)
    run.make_plan()
    step("plan", count)
    with run.chunks() as chunks:
        step("start", 0)
        for work in chunks:
            run.run_chunk(work)
            step("chunk", work.images.num_rows)
    step("stop", 0)
    summary = run.check()
    step("check", count)
    watch.stop()
    assert (summary.images, summary.errors) == (count, 0)
    return {"images": count, "steps": steps, "stages": summary.seconds_by_stage, "driver_mb": peak_memory()}


def cpu_of(measured: dict[str, Any], name: str) -> float:
    """CPU milliseconds per image of a step, all its turns together."""
    return 1000 * sum(step["cpu"] for step in measured["steps"] if step["step"] == name) / measured["images"]


def split_chunks(runs: list[dict[str, Any]]) -> tuple[float, float]:
    """What a chunk costs however small it is (CPU s) and what each of its images adds (CPU ms): least squares over all chunks."""
    import numpy as np

    chunks = [step for run in runs for step in run["steps"] if step["step"] == "chunk"]
    columns = np.array([[1.0, chunk["images"]] for chunk in chunks])
    if len({chunk["images"] for chunk in chunks}) < 2:
        return float("nan"), float("nan")
    fixed, each = np.linalg.lstsq(columns, np.array([chunk["cpu"] for chunk in chunks]), rcond=None)[0]
    return float(fixed), 1000 * float(each)


def report(runs: list[dict[str, Any]], loop_ms: dict[str, float]) -> None:
    print("loop, CPU ms per image: " + ", ".join(f"{stage} {value:.2f}" for stage, value in loop_ms.items()))
    print("CPU ms per image; `bare` is beyond decode and encode, `way` beyond all that the loop does")
    print(f"{'images':>8} {'inventory':>9} {'plan':>7} {'chunks':>7} {'check':>7} {'bare':>7} {'way':>7}  driver")
    for run in runs:
        parts = {name: cpu_of(run, name) for name in ("inventory", "plan", "chunk", "check")}
        bare = sum(parts.values()) - loop_ms["decode"] - loop_ms["encode"]
        way = sum(parts.values()) - sum(loop_ms.values())
        print(f"{run['images']:8} {parts['inventory']:9.3f} {parts['plan']:7.3f} {parts['chunk']:7.2f} {parts['check']:7.3f} "
              f"{bare:7.2f} {way:7.2f}  {run['driver_mb']:.0f} MB")  # fmt: skip
    start = [sum(step["cpu"] for step in run["steps"] if step["step"] in ("imports", "start", "stop")) for run in runs]
    once = ", ".join(f"{seconds:.1f}" for seconds in start)
    print(f"once a run: {once} s of CPU (imports, start and stop of Ray), not in the table")
    fixed, each = split_chunks(runs)
    print(f"a chunk: {fixed:.1f} s of CPU, and {each:.2f} ms for each of its images")


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """CPU ms per image of every step over the number of images, both axes logarithmic."""
    from math import log10

    names = {"chunk": "chunks", "inventory": "inventory", "plan": "plan", "check": "check"}
    colours = {"chunk": "#2e6eb4", "inventory": "#c44e52", "plan": "#52965a", "check": "#8c60aa"}
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
    for name, title in names.items():
        dots = [place(run["images"], cpu_of(run, name)) for run in runs]
        points = " ".join(f"{x},{y}" for x, y in dots)
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
        lines += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colours[name]}"/>' for x, y in dots]
        lines.append(f'<text x="{right + 12}" y="{dots[-1][1] + 4}" fill="{colours[name]}">{title}</text>')
    path.write_text("\n".join([*lines, "</svg>", ""]))


def run(folder: Path, sizes: list[int], chunk_size: int, picture: Path | None, data: Path | None) -> None:
    known = json.loads(data.read_text()) if data and data.exists() else {}
    missing = [count for count in sizes if str(count) not in known]
    if missing or "loop" not in known:
        model = apart(make_model, folder / "model").result
        archive = apart(make_photos, folder / "photos", max([*missing, LOOP])).result
        known["loop"] = apart(loop, archive, model).result
        for count in missing:
            known[str(count)] = apart(segment, archive, model, folder / str(count), count, chunk_size).result
            print(json.dumps(known[str(count)]), flush=True)
            if data:
                data.write_text(json.dumps(known))
    runs = [known[str(count)] for count in sizes]
    report(runs, known["loop"])
    if picture:
        plot(runs, picture)
