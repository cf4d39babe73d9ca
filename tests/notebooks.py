"""The notebooks of examples/: `python -m tests.notebooks` runs them and stores what their cells show.

A notebook is JSON, and a cell of it a few statements, so nothing of Jupyter is needed.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(notebook: dict[str, Any]) -> None:
    """Run the code cells of a notebook in order, in the current folder, and put their outputs into it. Raises their errors."""
    names: dict[str, Any] = {"__name__": "__main__"}
    number = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        number += 1
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = _run_cell("".join(cell["source"]), names)
        cell["execution_count"], cell["outputs"] = number, []
        if printed.getvalue():
            text = printed.getvalue().splitlines(keepends=True)
            cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": text})
        if value is not None:
            data: dict[str, Any] = {"text/plain": [repr(value)]}
            if hasattr(value, "_repr_png_"):
                data["image/jpeg"] = base64.b64encode(_as_jpeg(value._repr_png_())).decode()
            shown = {"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data}
            cell["outputs"].append(shown)


def _run_cell(source: str, names: dict[str, Any]) -> object:
    """Run the statements of a cell and return the value of the last one, if it is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last is not None else None


def _as_jpeg(png: bytes) -> bytes:
    """A picture in a tenth of the bytes, for the repository."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def code_of(page: Path) -> list[str]:
    """The Python blocks of a Markdown page."""
    blocks = page.read_text(encoding="utf-8").split("```python\n")[1:]
    return [block.split("```")[0] for block in blocks]


if __name__ == "__main__":
    os.chdir(EXAMPLES)
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        content = json.loads(path.read_text(encoding="utf-8"))
        run(content)
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
