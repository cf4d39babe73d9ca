"""The walk-throughs of CONTRIBUTING.md: their code is run as if it stood in the modules that they name."""

from __future__ import annotations

import csv
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deeplab import text_lists
from deeplab.networks.deeplab_heads import LargeFOV
from deeplab.zoo import mobilenet
from pipelines.archive import image_lists
from pipelines.archive.image_lists import MISSING, ArchiveError
from pipelines.exports import image_files
from pipelines.exports.source import Masks
from tests.infra.test_wheel import ROOT
from tests.material import photo
from tests.pipelines.exports.exported import make_table, regions

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
NETWORK, EXPORT, ARCHIVE = (
    textwrap.dedent(block) for block in re.findall(r"^ +```python\n(.*?)^ +```", PAGE, re.DOTALL | re.MULTILINE)
)


def defined(code: str, module: Any, **imported: Any) -> dict[str, Any]:
    """The names of a module after code was added to it."""
    names = {**vars(module), **imported}
    exec(compile(code, "CONTRIBUTING.md", "exec", dont_inherit=True), names)
    return names


def test_the_network_of_the_guide_is_built_and_scores_an_image() -> None:
    function, entry = NETWORK.split("\n\n")
    names = defined(f"{function}\n\n(entry,) = ({entry}\n)", mobilenet, LargeFOV=LargeFOV)
    assert names["entry"].name == "mobilenet-v2-largefov" and names["entry"].source
    with torch.device("meta"), torch.no_grad():
        scores = names["entry"].build(21).eval()(torch.empty(1, 3, 65, 65))
    assert scores.shape == (1, 21, 9, 9)


def test_the_export_of_the_guide_writes_what_numpy_reads(tmp_path: Path) -> None:
    image, labels = tmp_path / "photos" / "one.jpg", regions(60, 80, 3)
    image.parent.mkdir()
    image.write_bytes(photo(1))
    table = make_table(tmp_path / "table", {image: labels})
    source = Masks(table, table.pick_model(None), tmp_path / "out")
    defined(EXPORT, image_files, np=np)["npy"](source)
    assert (np.load(tmp_path / "out" / "one.npy") == labels).all()
    assert source.done.images == source.done.files == 1
    entry = re.search(r'`"npy": (Format\(.*\)),`', PAGE)
    assert entry and '"image_files.npy"' in entry[1]


def test_the_archive_of_the_guide_lists_each_image_once_and_refuses_what_is_no_list(tmp_path: Path) -> None:
    from_csv = defined(ARCHIVE, image_lists, csv=csv, text_lists=text_lists)["from_csv"]
    (tmp_path / "one.jpg").write_bytes(photo(1))
    path = tmp_path / "list.csv"
    path.write_text("number,uri\n1,one.jpg\n2,one.jpg\n3,gone.jpg\n")
    one, gone = from_csv(path)
    assert one[0] == (tmp_path / "one.jpg").as_uri() and one[2] != MISSING and gone[2] == MISSING
    for data, message in ((b"number\n1\n", "a column `uri` is needed"), (b"uri\n\xff.jpg\n", "not a readable UTF-8 list")):
        path.write_bytes(data)
        with pytest.raises(ArchiveError, match=message):
            list(from_csv(path))
