"""The notebook and the page about Python do what they show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from deeplab.masks import decode_png
from tests import notebooks

PAGE = notebooks.EXAMPLES.parent / "docs" / "python.md"


def test_the_notebook_runs_and_shows_its_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(notebooks.EXAMPLES)
    (path,) = notebooks.EXAMPLES.glob("*.ipynb")
    stored = json.loads(path.read_text(encoding="utf-8"))
    again = json.loads(path.read_text(encoding="utf-8"))
    notebooks.run(again)

    def kinds(content: dict[str, list[dict[str, object]]]) -> list[list[object]]:
        outputs = [cell.get("outputs", []) for cell in content["cells"]]
        return [[(out["output_type"], sorted(out.get("data", ()))) for out in cell] for cell in outputs]  # type: ignore[attr-defined]

    assert kinds(stored) == kinds(again), "python -m tests.notebooks stores what the cells show now"
    assert str(again).count("image/jpeg") == 2 and "BrokenImage no-such-photo.jpg" in str(again)


def test_the_page_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "examples").symlink_to(notebooks.EXAMPLES)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in notebooks.code_of(PAGE):
        exec(block, names)
    with Image.open("overlay.png") as overlay, Image.open("mask.png") as mask:
        assert overlay.size == mask.size
    assert set(decode_png(Path("mask.png").read_bytes()).flat) == {0, 3}  # the page's ('background', 'bird')
    printed = capsys.readouterr()
    assert "no-such-photo.jpg has no mask: read: No such file or directory" in printed.out
    assert "5 of 5 images" in printed.err
