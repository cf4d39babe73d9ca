"""The compiled engine, imported on first use."""

from __future__ import annotations

import importlib
from typing import Any


def engine_module() -> Any:
    """The extension module `deeplab.crf._engine`. ImportError that says how to get it where it is missing."""
    try:
        return importlib.import_module("deeplab.crf._engine")
    except ImportError as error:
        raise ImportError(
            "the dense CRF engine (deeplab.crf._engine) is not built for this Python: install the package with "
            "'pip install .' (a wheel, or a C++17 compiler; CMake and nanobind come with the build), "
            f"or choose backend='torch'. The import said: {error}"
        ) from error
