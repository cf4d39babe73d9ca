"""A built wheel in a clean environment: no compiler, numpy alone. Slow to build, so `make wheel` names it: DEEPLAB_WHEEL=FILE."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

WHEEL = os.environ.get("DEEPLAB_WHEEL")
SMOKE = Path(__file__).parent / "smoke.py"


@pytest.mark.skipif(not WHEEL, reason="no wheel: make wheel")
def test_the_wheel_works_without_a_compiler_and_says_what_is_missing_without_its_engine(tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    # Neither gcc, clang, cmake nor ninja can be found; CC and CXX would be tried first.
    bare = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    bare |= {"PATH": str(tmp_path / "venv" / "bin"), "CC": "/nonexistent", "CXX": "/nonexistent"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([python, *arguments], env=bare, cwd=tmp_path, capture_output=True, text=True, timeout=240)

    for what in (["numpy"], ["--no-deps", str(Path(str(WHEEL)).resolve())]):
        done = run("-m", "pip", "install", "--quiet", "--only-binary", ":all:", *what)
        assert done.returncode == 0, done.stderr
    done = run(str(SMOKE))
    assert done.stdout.strip() == "the engines work", done.stderr
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for extension in (tmp_path / "venv" / "lib" / version / "site-packages" / "deeplab" / "crf").glob("_engine*"):
        extension.unlink()
    done = run(str(SMOKE))
    assert "dense CRF engine (deeplab.crf._engine) is not built for this Python" in done.stderr
