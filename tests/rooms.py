"""The rooms of the tree, read from its imports: `python -m tests.rooms` draws them into docs/architecture.md.

A room is a folder below one of the three floors; the modules that lie on a floor itself are one room of its name, but for those
of ABOVE, which stand on top of the others and are a room each; what `import deeplab` offers is one of them.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("flows", "pipelines", "deeplab")
FACE = "deeplab/__init__"
ABOVE = {"flows/cli", "flows/deployments", "pipelines/job_program", "pipelines/benchmark", FACE}
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: drawn by `python -m tests.rooms` -->\n", "<!-- end of rooms -->\n"


def sources(folder: str) -> list[Path]:
    """The Python files of a folder of the repository, those below it too."""
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, folder
    return files


@cache
def parsed(path: Path) -> list[ast.AST]:
    """All nodes of a file's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path) for floor in FLOORS for path in sources(floor)}


def room_of(module: str) -> str:
    """`pipelines.table.commit` is in the room `pipelines/table`, `pipelines.options` in `pipelines`."""
    if module == "deeplab":
        return FACE
    floor, *rest = module.split(".")
    place = "/".join([floor, *rest[:1]])
    return place if place in ABOVE or (ROOT / place).is_dir() else floor


def imported_modules(path: Path) -> set[str]:
    """Our modules that a file imports, at its head or inside a function."""
    modules = set()
    for node in parsed(path):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= (submodules & MODULES) or {node.module or ""}
    return {module for module in modules if module.split(".")[0] in FLOORS}


@cache
def edges() -> dict[str, dict[str, str]]:
    """Room -> the other rooms that it imports, each with a module that does so."""
    graph: dict[str, dict[str, str]] = {}
    for floor in FLOORS:
        for path in sources(floor):
            room = room_of(module_of(path))
            targets = graph.setdefault(room, {})
            for module in sorted(imported_modules(path)):
                if room_of(module) != room:
                    targets.setdefault(room_of(module), module_of(path))
    return graph


def reachable(graph: dict[str, dict[str, str]], room: str) -> set[str]:
    """All rooms that `room` imports, directly or by others."""
    rooms, waiting = set(), list(graph[room])
    while waiting:
        if (target := waiting.pop()) not in rooms:
            rooms.add(target)
            waiting += graph[target]
    return rooms


def picture() -> str:
    """The rooms as a mermaid graph. An arrow that follows from others is left out."""
    graph = edges()
    lines = ["```mermaid", "graph TD"]
    for floor in FLOORS:
        lines.append(f'  subgraph {floor}_floor["{floor}/"]')
        for room in sorted(room for room in graph if room.split("/")[0] == floor):
            title = f"{room}.py" if room in ABOVE else f"{room}/" if "/" in room else f"modules of {room}/"
            lines.append(f'    {room.replace("/", "_")}["{title}"]')
        lines.append("  end")
    for room in sorted(graph):
        implied = set().union(*(reachable(graph, target) for target in graph[room]))
        lines += [f"  {room.replace('/', '_')} --> {target.replace('/', '_')}" for target in sorted(set(graph[room]) - implied)]
    return "\n".join([*lines, "```", ""])


def drawn(page: str) -> str:
    """The page with the picture as it is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{picture()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
