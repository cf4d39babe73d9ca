"""What the peers need, made once and kept under build/peers: their environment, networks, and packages of earlier commits."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from deeplab.models import checkpoint
from deeplab.models.checkpoint import Model
from peers.turns import BENCHMARKS, Child

FOLDER = BENCHMARKS.parent / "build" / "peers"
REQUIREMENTS = BENCHMARKS / "peers" / "requirements.txt"


def located(name: str) -> tuple[str, Model]:
    """A bundled model, or one in a folder, and what children call it. SystemExit if it has no ranges for int8."""
    name = str(Path(name).resolve()) if Path(name).is_dir() else name
    model = checkpoint.load(name)
    if model.network.quantization is None:
        raise SystemExit(f"{model.label} has no ranges for int8; `deeplab quantize MODEL PHOTOS` finds and writes them")
    return name, model


def environment() -> Path:
    """The folder of a virtual environment with REQUIREMENTS; made again when they have changed."""
    folder = FOLDER / "env"
    ready = folder / REQUIREMENTS.name
    if not ready.exists() or ready.read_text() != REQUIREMENTS.read_text():
        print(f"making {folder}, some minutes, once", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS], check=True)
        ready.write_text(REQUIREMENTS.read_text())
    return folder


def packages(environment: Path) -> Path:
    """Where its packages are."""
    return next(environment.glob("lib/python*/site-packages"))


def save_photos(photos: Sequence[np.ndarray], folder: Path) -> list[str]:
    """Write H x W x 3 photos as .npy files: their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(folder / f"{number}.npy") for number in range(len(photos))]
    for path, photo in zip(paths, photos, strict=True):
        np.save(path, photo)
    return paths


@contextmanager
def engines(name: str, model: Model, calibration: Sequence[np.ndarray]) -> Iterator[Child]:
    """`peers.engines` with the network of a `located` model, exported and quantized with these photos; both files are kept."""
    where = environment()
    network = model.network
    if not network.geometry.padded or network.geometry.exact_mean:
        raise SystemExit(f"{model.label}: the peers pad as bundled models do; this one is padded otherwise")
    stem = FOLDER / "networks" / f"{model.name.replace('/', '-')}-{model.digest[:12]}"
    exact, int8 = Path(f"{stem}.onnx"), Path(f"{stem}-{len(calibration)}.xml")
    exact.parent.mkdir(exist_ok=True)
    if not exact.exists():
        part = Path(f"{stem}.part")
        subprocess.run([sys.executable, "-m", "peers.export", name, part, packages(where)], cwd=BENCHMARKS, check=True)
        part.rename(exact)
    colour = ",".join(str(round(value)) for value in network.normalization.mean_rgb)
    arguments = (str(exact), str(int8), str(network.stride), colour)
    python = where / "bin" / "python"
    with (
        tempfile.TemporaryDirectory(prefix="deeplab-peers-") as folder,
        Child("peers.engines", *arguments, python=python, environment={"PYTHONPATH": None}) as child,
    ):
        child.ask("photos", paths=save_photos(calibration, Path(folder)))
        child.ask("calibrate")
        yield child


def package_of(revision: str) -> Path:
    """A folder with the packages of this repository at a commit, engines built; for PYTHONPATH."""
    root = BENCHMARKS.parent
    commit = subprocess.run(["git", "rev-parse", "--verify", f"{revision}^{{commit}}"], cwd=root, capture_output=True, text=True)
    if commit.returncode:
        raise SystemExit(f"--before {revision}: no commit of this repository")
    target = FOLDER / f"commit-{commit.stdout[:12]}"
    if not target.exists():
        print(f"building {target}, a few minutes, once", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="deeplab-before-") as folder:
            archive = subprocess.run(["git", "archive", commit.stdout.strip()], cwd=root, check=True, capture_output=True)
            with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tree:
                tree.extractall(folder, filter="data")
            built = target.with_suffix(".part")
            install = [
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--no-build-isolation",
                "--upgrade",
                "--target",
                str(built),
                folder,
            ]
            subprocess.run([sys.executable, "-m", *install], check=True)
            built.rename(target)
    return target
