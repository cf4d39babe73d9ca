"""Strict JSON, which every parser accepts."""

from __future__ import annotations

import json
import math


def json_text(value: object, indent: int | None = None) -> str:
    """Plain values as JSON text. NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
