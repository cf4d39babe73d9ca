"""KubeRay's resource definitions as JSON schemas in which an unknown field is an error."""

from __future__ import annotations

import gzip
import json
from functools import lru_cache
from pathlib import Path
from typing import Any


def strict(node: Any) -> Any:
    """An OpenAPI schema as Kubernetes reads it, made strict: no fields but the named ones, numbers or strings where it says so."""
    if isinstance(node, list):
        return [strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {key: strict(value) for key, value in node.items() if key != "properties" and not key.startswith("x-kubernetes")}
    if "properties" in node:
        found["properties"] = {name: strict(value) for name, value in node["properties"].items()}
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            found.setdefault("additionalProperties", False)
    return found


@lru_cache
def kuberay() -> dict[str, Any]:
    """Kind -> schema of the whole resource."""
    with gzip.open(Path(__file__).with_name("kuberay-v1.json.gz")) as stream:
        return {kind: strict(schema) for kind, schema in json.load(stream).items()}
