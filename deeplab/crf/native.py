"""The compiled engine, imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from deeplab.crf import _engine


class EngineModule(Protocol):
    """The extension module, as deeplab/crf/_engine.pyi describes it."""

    @property
    def builds(self) -> list[str]: ...

    @property
    def Engine(self) -> type[_engine.Engine]: ...

    @property
    def Filter(self) -> type[_engine.Filter]: ...


def engine_module() -> EngineModule:
    """The extension module `deeplab.crf._engine`. ImportError that says how to build it where it is missing."""
    try:
        return cast(EngineModule, importlib.import_module("deeplab.crf._engine"))
    except ImportError as error:
        raise ImportError(
            "the dense CRF engine (deeplab.crf._engine) is not built for this Python: install the package with "
            "'pip install .' (a wheel, or a C++17 compiler; CMake and nanobind come with the build), "
            f"or choose backend='torch'. The import said: {error}"
        ) from error
