"""The wheel: what goes into it, and that it works in an environment that holds it and its dependencies and sees no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHEEL = os.environ.get("DEEPLAB_WHEEL")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Without CMake this takes seconds: the C++ parts are missing, and all else is as in the real wheel.
BUILD = "import sys; from scikit_build_core.build import build_wheel; build_wheel(sys.argv[1], {'wheel.cmake': 'false'})"


def test_the_wheel_holds_all_of_the_three_packages_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", BUILD, tmp_path], cwd=ROOT, check=True, capture_output=True)
    (path,) = tmp_path.glob("*.whl")
    assert path.name.startswith(f"deeplab_pipelines-{PROJECT['version']}-")
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
        info = f"deeplab_pipelines-{PROJECT['version']}.dist-info"
        assert "deeplab = flows.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    packages = {name for name in names if not name.startswith(info)}
    assert f"{info}/licenses/LICENSE" in names
    tracked = subprocess.run(["git", "ls-files", "deeplab", "pipelines", "flows"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode == 0:
        assert packages >= {name for name in tracked.stdout.split() if "/src/" not in name and (ROOT / name).exists()}
    assert {f"deeplab/models/{model}/model.{kind}" for model in ("voc", "pets") for kind in ("json", "safetensors")} <= packages
    assert {name.split("/")[0] for name in packages} == {"deeplab", "pipelines", "flows"}
    assert not [name for name in packages if "/src/" in name or "__pycache__" in name or name.endswith(".so")]


@pytest.mark.skipif(not WHEEL, reason="no wheel: make wheel")
def test_the_installed_wheel_segments_photos_from_another_folder(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    (library,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    bare = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "DEEPLAB"))}

    def run(*command: str | Path) -> str:
        done = subprocess.run(list(map(str, command)), env=bare, cwd=tmp_path, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(binaries / "pip", "install", "--quiet", "--no-index", "--no-deps", Path(str(WHEEL)).resolve())
    # The dependencies are those of this environment. What its own .pth files name, such as this checkout, is not taken.
    (library / "dependencies.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *_bases()}))
    place = run(binaries / "python", "-c", "import deeplab, pipelines, flows; print(deeplab.__path__, flows.__path__)")
    assert str(ROOT) not in place
    assert run(binaries / "deeplab", "--version").strip() == f"deeplab {PROJECT['version']}"
    summary = json.loads(run(binaries / "deeplab", "segment", ROOT / "examples" / "photos", "results", "--limit", "3", "--json"))
    assert (summary["images"], summary["errors"]) == (3, 0)
    status = json.loads(run(binaries / "deeplab", "status", "results", "--json"))
    assert [(model["ok"], model["errors"]) for model in status["models"]] == [(3, 0)]
    run(binaries / "deeplab", "export", "results", "masks")
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 3


def _bases() -> list[str]:
    """Further folders of installed packages in this environment."""
    return [entry for entry in sys.path if entry.endswith("site-packages")]
