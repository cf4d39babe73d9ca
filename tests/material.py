"""Small real things that tests make: a random model, photos, an archive, a data set, a results table."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn

from deeplab import masks, zoo
from deeplab.classes import PETS, ClassTable
from deeplab.models import checkpoint

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CLASSES = ClassTable(("background", "cat"), ((0, 0, 0), (64, 0, 0)))
CARD = {"name": "m", "classes": [{"name": "background", "colour": [0, 0, 0]}, {"name": "cat", "colour": [64, 0, 0]}]}
EXAMPLES = Path(__file__).parents[1] / "examples" / "pets"


def make_model(folder: Path, seed: int = 0, name: str = "tiny") -> Path:
    """A model folder with random weights whose masks are not all one class."""
    torch.manual_seed(seed)
    network = zoo.build("mobilenet-v2-aspp", 3)
    with torch.no_grad():
        for branch in network.head.branches:
            branch.weight.mul_(50)
    classes = [{"name": n, "colour": list(c)} for n, c in zip(PETS.names, PETS.colours, strict=True)]
    card = {"name": name, "architecture": {"name": "mobilenet-v2-aspp", "options": {}}, "classes": classes}
    checkpoint.save(folder, network, card)
    return folder


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight by fan-in, every bias, statistic and affine term at random, evaluation mode."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            if module.weight.requires_grad:
                fan = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.weight[:, 0].numel()
                nn.init.normal_(module.weight, 0, (2 / fan) ** 0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.6, 1.2)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def make_narrow(folder: Path, architecture: str, seed: int = 0, classes: tuple[str, ...] = PETS.names, **entries: object) -> Path:
    """A model folder of a VGG-like architecture at a twentieth of its width, random weights; `entries` of its card."""
    network = randomise(zoo.build(architecture, len(classes), width=0.05), seed)
    table = [{"name": name, "colour": [index, 0, 0]} for index, name in enumerate(classes)]
    card = {"name": folder.name, "architecture": {"name": architecture, "options": {"width": 0.05}}, "classes": table, **entries}
    checkpoint.save(folder, network, card)
    return folder


def photo(seed: int, height: int = 60, width: int = 80) -> bytes:
    """A JPEG of smooth random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def make_archive(folder: Path, count: int, first: int = 0, scale: int = 1) -> Path:
    """`count` photos of three sizes in two folders, named photo_NNN.jpg; `scale` 20 makes each a second's work."""
    for index in range(first, first + count):
        target = folder / ("a" if index % 2 else "b") / f"photo_{index:03d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        height, width = [(60, 80), (80, 60), (64, 64)][index % 3]
        target.write_bytes(photo(index, scale * height, scale * width))
    return folder


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as shard:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    return path


def make_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as shard:
        for name, data in members.items():
            shard.writestr(name, data)
    return path


def listed(archive: object, tmp_path: Path, **options: object) -> dict[str, tuple[int, str]]:
    """Bytes and version by URI of all that an archive holds."""
    from pipelines.archive import inventory

    found = inventory.take(str(archive), tmp_path / "inventory.parquet", **options)  # type: ignore[arg-type]
    rows = pq.read_table(found.path).to_pylist()
    assert len(rows) == found.images
    return {row["uri"]: (row["bytes"], row["version"]) for row in rows}


def listed_versions(archive: str, tmp_path: Path) -> dict[str, str]:
    """Version by URI of all that an archive holds."""
    return {uri: version for uri, (_, version) in listed(archive, tmp_path).items()}


def make_dataset(folder: Path, count: int = 6, side: int = 57, classes: tuple[str, ...] = ("ground", "square")) -> Path:
    """`count` labelled pictures in our layout: dark ground (class 0), a bright square (class 1), a line of 255 below it.

    `val` is the first two of them, `train` all.
    """
    random = np.random.default_rng(3)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    stems = [f"picture_{index}" for index in range(count)]
    for stem in stems:
        image = random.integers(0, 60, (side, side, 3), dtype=np.uint8)
        labels = np.zeros((side, side), np.uint8)
        top, left = random.integers(0, side // 3, 2)
        image[top : top + side // 2, left : left + side // 2] += 180
        labels[top : top + side // 2, left : left + side // 2] = 1
        labels[top + side // 2, left : left + side // 2] = 255
        Image.fromarray(image).save(folder / "images" / f"{stem}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{stem}.png")
    (folder / "classes.txt").write_text("\n".join(classes) + "\n")
    (folder / "train.txt").write_text("\n".join(stems) + "\n")
    (folder / "val.txt").write_text("\n".join(stems[:2]) + "\n")
    return folder


def row(name: str, **changed: object) -> dict[str, object]:
    """A row of a results table whose mask is 2 x 3 pixels of CLASSES."""
    labels = np.array([[0, 0, 1], [1, 1, 1]], np.uint8)
    found = {"uri": f"file:///{name}", "version": "1", "status": "ok", "height": 2, "width": 3, "run": "run-1"}
    found |= {"mask": masks.encode_png(labels, CLASSES), "class_pixels": [("background", 2), ("cat", 4)], "confidence": 0.5}
    return {**found, "segmented_at": datetime(2026, 1, 2, tzinfo=UTC), **changed}


def put(table: Any, chunk: str, *made: dict[str, object], model: str = "m@000000000000") -> str:
    """Commit rows as one part file; returns its path in the table."""
    from pipelines.table.commit import write_part
    from pipelines.table.schema import FILE_SCHEMA

    part = write_part(table.uri, model, pa.Table.from_pylist(list(made), schema=FILE_SCHEMA))
    table.commit(chunk, 1, [part.add_action(model)], model=model)
    return part.path


def log_entries(table: Path) -> list[dict[str, Any]]:
    """Every action of a Delta log, read as the plain JSON lines that they are."""
    return [json.loads(line) for file in sorted((table / "_delta_log").glob("*.json")) for line in file.read_text().splitlines()]


def committed(table: Path) -> int:
    """Images that commits brought, by the log's own files."""
    return sum(int(entry["commitInfo"].get("images", 0)) for entry in log_entries(table) if "commitInfo" in entry)


def uris(table: Path) -> list[str]:
    """Images with a row; fails when one has two."""
    from pipelines.table.results_table import ResultsTable

    rows = ResultsTable.open(str(table)).dataset().to_table(columns=["uri"])["uri"].to_pylist()
    assert len(rows) == len(set(rows))
    return rows


def make_results(
    folder: Path, photos: int = 8, errors: int = 3, run: str = "run-1", start: datetime = START, name: str = "pets"
) -> Path:
    """A results table, written without Ray: an archive's photos, masked cat on the left and dog at the bottom, and errors."""
    from pipelines.table.commit import write_part
    from pipelines.table.results_table import ResultsTable
    from pipelines.table.schema import FILE_SCHEMA

    model = f"{name}@0123456789ab"
    archive = make_archive(folder / "photos", photos)
    table = ResultsTable.ensure(str(folder / "results"))
    classes = [{"name": n, "colour": list(c)} for n, c in zip(PETS.names, PETS.colours, strict=True)]
    table.register(model, {"name": name, "classes": classes})
    rows = []
    for index, path in enumerate(sorted(archive.rglob("*.jpg"))[:photos]):
        with Image.open(path) as picture:
            labels = np.zeros((picture.height, picture.width), np.uint8)
        labels[:, : 10 + index] = 1
        if index % 2:
            labels[-20:] = 2
        counts = [(PETS.names[k], int((labels == k).sum())) for k in range(3) if (labels == k).any()]
        good = {"status": "ok", "height": labels.shape[0], "width": labels.shape[1], "mask": masks.encode_png(labels, PETS)}
        rows.append({**good, "uri": path.as_uri(), "class_pixels": counts, "confidence": 0.5 + 0.05 * index})
    for index in range(errors):
        reason = "decode: empty file (0 bytes)" if index % 2 else f"decode: damaged or truncated: at byte {index}"
        rows.append({"uri": f"file:///photos/broken-{index}.jpg", "status": "error", "error": reason})
    for index, row in enumerate(rows):
        row |= {"version": f"{run}-v", "run": run, "segmented_at": start + timedelta(seconds=2 * index)}
    part = write_part(table.uri, model, pa.Table.from_pylist(rows, schema=FILE_SCHEMA))
    seconds = {"score": 30.0, "refine": 10.0}
    table.commit(f"chunk-{run}", 1, [part.add_action(model)], notes={"run": run, "seconds": json.dumps(seconds)}, model=model)
    return folder / "results"
