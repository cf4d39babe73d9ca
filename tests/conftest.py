"""What every part of the tests may use: the material beside the repository, where it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("DEEPLAB_SHARED") or Path(__file__).resolve().parents[2] / "shared")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of test material beside the repository; skips where there is none."""
    if not SHARED.is_dir():
        pytest.skip(f"no test material at {SHARED}; DEEPLAB_SHARED names another place")
    return SHARED
