"""A packed data set is the data set: same pairs, same order, same samples."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from deeplab.data.datasets import LabelledFolder
from deeplab.data.layouts import DatasetError
from pipelines.train import packed_datasets
from tests.material import make_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "data")


def packed(folder: Path, out: Path) -> Path:
    assert packed_datasets.pack([LabelledFolder(folder, "train"), LabelledFolder(folder, "val")], str(out)) == 8
    return out


def test_a_pack_gives_the_same_pairs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_datasets, "FILE_BYTES", 20_000)  # several files
    out = packed(folder, tmp_path / "packed")
    assert len(list(out.rglob("*.parquet"))) > 2
    for split in ("train", "val"):
        plain, found = LabelledFolder(folder, split), packed_datasets.open_dataset(str(out), split)
        assert isinstance(found, packed_datasets.Packed)
        assert (found.stems, found.classes, found.split) == (plain.stems, plain.classes, split)
        again = pickle.loads(pickle.dumps(found))
        for index in (len(plain) - 1, 0):
            for one, other in ((found[index], plain[index]), (again[index], plain[index])):
                np.testing.assert_array_equal(one[0], other[0])
                np.testing.assert_array_equal(one[1], other[1])
        assert found.without(found.stems[:1])[0][1].tolist() == plain[1][1].tolist()


def test_what_is_no_sound_pack_is_named(folder: Path, tmp_path: Path) -> None:
    out = packed(folder, tmp_path / "packed")
    with pytest.raises(DatasetError, match="already holds a pack"):
        packed(folder, out)
    with pytest.raises(DatasetError, match="no split test; splits here: train, val"):
        packed_datasets.open_dataset(str(out), "test")
    (part,) = (out / "val").glob("*.parquet")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(DatasetError, match=r"part-00000\.parquet, pair picture_1"):
        packed_datasets.open_dataset(str(out), "val")[1]


def test_a_broken_pair_leaves_no_pack(folder: Path, tmp_path: Path) -> None:
    (folder / "labels" / "picture_4.png").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"picture_4\.png"):
        packed(folder, tmp_path / "packed")
    assert not (tmp_path / "packed" / packed_datasets.INDEX).exists()


def test_large_pairs_are_cut_into_tiles_that_cover_them(folder: Path, tmp_path: Path) -> None:
    assert (
        packed_datasets.pack([LabelledFolder(folder, "val")], str(tmp_path / "tiles"), tile=40) == 8
    )  # 57 pixels: 2 x 2 tiles of two pairs
    plain, tiles = LabelledFolder(folder, "val"), packed_datasets.open_dataset(str(tmp_path / "tiles"), "val")
    assert tiles.stems[:4] == [f"picture_0-{top}-{left}" for top in (0, 28) for left in (0, 28)]
    for part in (0, 1):
        upper, lower = (np.hstack([tiles[row][part], tiles[row + 1][part]]) for row in (0, 2))
        np.testing.assert_array_equal(np.vstack([upper, lower]), plain[0][part])
    assert packed_datasets.pack([LabelledFolder(folder, "val")], str(tmp_path / "whole"), tile=57) == 2
