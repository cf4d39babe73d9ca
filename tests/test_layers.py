"""Three layers, imports only downwards: flows -> pipelines -> deeplab. Read from the source, so nothing is imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"deeplab", "pipelines", "flows"}
SCIENCE = {"torch", "torchvision", "numpy", "PIL", "safetensors", "pycocotools", "pydensecrf"}
# What one module uses where it is installed; it is imported when it is needed.
OPTIONAL = {ROOT / "deeplab" / "rasters.py": {"rasterio"}}


def imports(path: Path) -> set[str]:
    """Top names of all that a file imports, at its head or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__", "import_module"):
            name = node.args[0]
            if isinstance(name, ast.Constant):
                found.add(str(name.value).split(".")[0])
    return found


def sources(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, package
    return files


@pytest.mark.parametrize("path", sources("deeplab"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_science_needs_torch_and_numpy_only(path):
    foreign = imports(path) - SCIENCE - OPTIONAL.get(path, set()) - {"deeplab"} - sys.stdlib_module_names
    assert not foreign, f"{path.relative_to(ROOT)} imports {', '.join(sorted(foreign))}"


@pytest.mark.parametrize("path", sources("pipelines"), ids=lambda path: str(path.relative_to(ROOT)))
def test_pipelines_know_no_flows_and_no_prefect(path):
    assert not imports(path) & {"prefect", "flows"}


def test_only_the_cluster_module_starts_or_joins_ray():
    for package in OURS:
        for path in sources(package):
            calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            names = [alias.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
                     and node.module == "ray" for alias in node.names]  # fmt: skip
            if path != ROOT / "pipelines" / "cluster.py":
                assert "ray.init" not in calls, path
                assert "init" not in names, path
    cluster = ast.parse((ROOT / "pipelines" / "cluster.py").read_text())
    assert any(isinstance(node, ast.Call) and ast.unparse(node.func) == "ray.init" for node in ast.walk(cluster))


def test_only_the_sql_module_opens_duckdb():
    """So that every connection has UTC, a bound on its memory, and a folder of any name to spill to."""
    for package in OURS:
        for path in sources(package):
            calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
            opened = {call for call in calls if call.startswith("duckdb.")}
            assert opened == ({"duckdb.connect"} if path == ROOT / "pipelines" / "sql.py" else set()), path


def test_the_science_imports_where_the_other_layers_are_missing():
    """No module of deeplab/ pulls Ray, Prefect or storage in at import time, by whatever way."""
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in sources("deeplab")]
    heavy = ["ray", "prefect", "boto3", "pyarrow", "deltalake", "duckdb", "pydantic", "rasterio", "pipelines", "flows"]
    script = f"import importlib, sys; [importlib.import_module(name) for name in {modules}]; print(set({heavy}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"
