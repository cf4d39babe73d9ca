"""The science: networks, scoring, CRF refinement, training and metrics; torch and numpy only.

Modules here are what every room of this floor may use: classes, masks, files, names, errors. No Ray, no storage, no Prefect.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deeplab.errors import ImageError
    from deeplab.segmentation.mask import BrokenImage, Mask
    from deeplab.segmentation.segmenter import Segmenter, load

__all__ = ["BrokenImage", "ImageError", "Mask", "Segmenter", "load"]

_HOMES = {
    "BrokenImage": "deeplab.segmentation.mask",
    "ImageError": "deeplab.errors",
    "Mask": "deeplab.segmentation.mask",
    "Segmenter": "deeplab.segmentation.segmenter",
    "load": "deeplab.segmentation.segmenter",
}


def __getattr__(name: str) -> object:
    """The names of `__all__`, imported when they are used: `import deeplab` alone does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'deeplab' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
