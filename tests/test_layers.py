"""Three floors, imports only downwards: flows -> pipelines -> deeplab, and the rooms on each. Read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import rooms
from tests.rooms import FLOORS, ROOT, parsed, sources

SCIENCE = {"torch", "torchvision", "numpy", "PIL", "safetensors", "pycocotools", "pydensecrf"}
# What one module uses where it is installed; it is imported when it is needed.
OPTIONAL = {
    ROOT / "deeplab" / "images" / "gdal_raster.py": {"rasterio"},
    ROOT / "deeplab" / "images" / "heif.py": {"pillow_heif"},
    ROOT / "deeplab" / "images" / "jpeg_xl.py": {"imagecodecs"},
    ROOT / "deeplab" / "weights" / "tflite_file.py": {"tflite"},
    ROOT / "deeplab" / "region_proposals.py": {"cv2"},
}
MOST_MODULES = 12

# Room: the rooms that it imports. A room imports only what stands above it here, so there are no circles.
ROOMS = {
    "deeplab": "",
    "deeplab/images": "deeplab",
    "deeplab/convolutions": "",
    "deeplab/networks": "deeplab deeplab/convolutions",
    "deeplab/zoo": "deeplab/networks",
    "deeplab/crf": "deeplab",
    "deeplab/models": "deeplab deeplab/networks deeplab/zoo deeplab/crf",
    "deeplab/weights": "deeplab deeplab/networks deeplab/zoo deeplab/models",
    "deeplab/scoring": "deeplab deeplab/images deeplab/convolutions deeplab/networks deeplab/crf deeplab/models",
    "deeplab/segmentation": "deeplab deeplab/images deeplab/crf deeplab/models deeplab/scoring",
    "deeplab/__init__": "deeplab deeplab/segmentation",
    "deeplab/data": "deeplab deeplab/images",
    "deeplab/evaluation": "deeplab deeplab/scoring deeplab/data",
    "deeplab/training": "deeplab deeplab/networks deeplab/models deeplab/scoring deeplab/data deeplab/evaluation",
    #
    "pipelines": "",
    "pipelines/storage": "deeplab deeplab/models",
    "pipelines/archive": "deeplab deeplab/images pipelines/storage",
    "pipelines/table": "deeplab deeplab/scoring pipelines pipelines/storage pipelines/archive",
    "pipelines/cluster": "deeplab",
    "pipelines/options": "deeplab deeplab/images deeplab/crf deeplab/models deeplab/scoring deeplab/segmentation deeplab/training",
    "pipelines/segment": "deeplab deeplab/images deeplab/crf deeplab/models deeplab/scoring deeplab/segmentation "
    "pipelines pipelines/storage pipelines/archive pipelines/table pipelines/cluster pipelines/options",
    "pipelines/ray_data": "deeplab deeplab/segmentation pipelines/table pipelines/options pipelines/segment",
    "pipelines/upkeep": "deeplab pipelines pipelines/storage pipelines/archive pipelines/table pipelines/segment",
    "pipelines/train": "deeplab deeplab/images deeplab/networks deeplab/zoo deeplab/crf deeplab/models deeplab/weights "
    "deeplab/scoring deeplab/data deeplab/evaluation deeplab/training pipelines pipelines/storage "
    "pipelines/table pipelines/cluster pipelines/options",
    "pipelines/exports": "deeplab deeplab/images pipelines/storage pipelines/archive pipelines/table",
    "pipelines/report": "deeplab deeplab/images pipelines/archive pipelines/table",
    "pipelines/job_program": "deeplab deeplab/training pipelines/storage pipelines/cluster pipelines/options pipelines/segment "
    "pipelines/train",
    "pipelines/doctor": "deeplab pipelines/storage pipelines/archive pipelines/cluster pipelines/segment",
    "pipelines/benchmark": "deeplab deeplab/images deeplab/zoo deeplab/models deeplab/scoring pipelines/storage pipelines/options",
    #
    "flows/console": "deeplab deeplab/training",
    "flows/watching": "pipelines/table pipelines/cluster pipelines/options pipelines/segment pipelines/exports pipelines/report "
    "flows/console",
    "flows/serving": "deeplab pipelines/cluster pipelines/options flows/console flows/watching",
    "flows": "deeplab deeplab/evaluation deeplab/training pipelines/storage pipelines/archive pipelines/cluster pipelines/options "
    "pipelines/segment pipelines/train flows/console flows/watching flows/serving",
    "flows/deployments": "pipelines/storage pipelines/options flows/watching flows/serving flows",
    "flows/commands": "deeplab deeplab/zoo deeplab/models deeplab/weights deeplab/data deeplab/evaluation deeplab/training "
    "pipelines/storage pipelines/archive pipelines/table pipelines/options pipelines/segment pipelines/upkeep "
    "pipelines/train pipelines/exports pipelines/report pipelines/doctor pipelines/benchmark flows/console "
    "flows/serving "
    "flows flows/deployments",
    "flows/cli": "flows/console flows/commands",
}


def imports(path: Path) -> set[str]:
    """Top names of all that a file imports, at its head or inside a function."""
    names = set()
    for node in parsed(path):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__", "import_module"):
            name = node.args[0]
            if isinstance(name, ast.Constant):
                names.add(str(name.value).split(".")[0])
    return names


def calls(path: Path) -> set[str]:
    return {ast.unparse(node.func) for node in parsed(path) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("path", sources("deeplab"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_science_needs_torch_and_numpy_only(path):
    foreign = imports(path) - SCIENCE - OPTIONAL.get(path, set()) - {"deeplab"} - sys.stdlib_module_names
    assert not foreign, f"{path.relative_to(ROOT)} imports {', '.join(sorted(foreign))}"


@pytest.mark.parametrize("path", sources("pipelines"), ids=lambda path: str(path.relative_to(ROOT)))
def test_pipelines_know_no_flows_and_no_prefect(path):
    assert not imports(path) & {"prefect", "flows"}


@pytest.mark.parametrize("path", sources("flows"), ids=lambda path: str(path.relative_to(ROOT)))
def test_flows_hold_no_tensors(path):
    assert not imports(path) & {"torch", "torchvision", "numpy"}


@pytest.mark.parametrize("room", sorted(rooms.edges()))
def test_a_room_imports_the_rooms_that_the_table_names(room):
    allowed, imported = set(ROOMS.get(room, "").split()), rooms.edges()[room]
    assert room in ROOMS, f"{room} has no line in the table"
    foreign = {target: imported[target] for target in imported if target not in allowed}
    assert not foreign, f"{room} imports {foreign}"
    assert allowed == set(imported), f"the table allows {room} what it does not need: {allowed - set(imported)}"


def test_the_table_has_no_circles_and_no_room_that_is_not_there():
    above: set[str] = set()
    for room, allowed in ROOMS.items():
        assert set(allowed.split()) <= above, room
        above.add(room)
    assert above == set(rooms.edges())


@pytest.mark.parametrize("room", [room for room in ROOMS if room not in rooms.ABOVE])
def test_a_room_has_few_modules_and_says_what_belongs_there(room):
    folder = ROOT / room
    modules = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
    assert len(modules) <= MOST_MODULES, f"{room}: {len(modules)} modules"
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    assert len(docstring.split("\n\n")) == 2, f"{room}: two lines are wanted, what belongs there and what does not"


def test_the_tests_lie_in_the_rooms_that_they_test():
    for floor in FLOORS:
        folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in sources(f"tests/{floor}")}
        assert folders <= {floor, *ROOMS}


def test_the_picture_of_the_rooms_is_that_of_the_imports():
    page = rooms.PAGE.read_text(encoding="utf-8")
    assert rooms.picture() in page, f"{rooms.PAGE.name} is stale; run python -m tests.rooms"


def test_only_the_cluster_room_starts_or_joins_ray():
    home = ROOT / "pipelines" / "cluster" / "connection.py"
    for floor in FLOORS:
        for path in sources(floor):
            taken = [node for node in parsed(path) if isinstance(node, ast.ImportFrom) and node.module == "ray"]
            if path != home:
                assert "ray.init" not in calls(path), path
                assert "init" not in [alias.name for node in taken for alias in node.names], path
    assert "ray.init" in calls(home)


def test_only_the_sql_module_opens_duckdb():
    """So that every connection has UTC, a bound on its memory, and a folder of any name to spill to."""
    for floor in FLOORS:
        for path in sources(floor):
            opened = {call for call in calls(path) if call.startswith("duckdb.")}
            assert opened == ({"duckdb.connect"} if path == ROOT / "pipelines" / "sql.py" else set()), path


def test_the_science_imports_where_the_other_layers_are_missing():
    """No module of deeplab/ pulls Ray, Prefect or storage in at import time, by whatever way."""
    modules = [rooms.module_of(path) for path in sources("deeplab")]
    heavy = ["ray", "prefect", "boto3", "pyarrow", "deltalake", "duckdb", "pydantic", "rasterio"]
    heavy += ["pillow_heif", "imagecodecs", "pipelines", "flows"]
    script = f"import importlib, sys; [importlib.import_module(name) for name in {modules}]; print(set({heavy}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"
