"""The Hugging Face export, read back by `datasets` without a network."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from deeplab.images.decoding import decode
from pipelines.exports import huggingface
from pipelines.table.table_errors import ResultsError
from tests.material import photo
from tests.pipelines.exports.exported import make_table, regions, written

# In a process of its own: `datasets` reads its settings at import, and starts threads.
READ = """
import sys, json, numpy as np, datasets
rows = datasets.load_dataset(sys.argv[1], split="train")
assert isinstance(rows.features["mask"], datasets.Image) and isinstance(rows.features["image"], datasets.Image)
arrays = {row["uri"]: np.stack([np.array(row["mask"]), *np.moveaxis(np.array(row["image"]), 2, 0)]) for row in rows}
np.savez(sys.argv[2], **arrays)
print(json.dumps([len(rows), rows[0]["confidence"], rows[0]["mask"].mode]))
"""


@pytest.fixture
def of(tmp_path: Path) -> dict[Path, np.ndarray]:
    found = {}
    for index in range(5):
        path = tmp_path / "photos" / "ab"[index % 2] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(index))
        found[path] = regions(60, 80, 3, index)
    turned = tmp_path / "photos" / "turned.jpg"
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn, as from a phone held upright
    with Image.open(io.BytesIO(photo(9, 80, 60))) as upright:
        upright.save(turned, exif=exif)
    return found | {turned: regions(60, 80, 3, 9)}


def test_datasets_loads_the_same_photos_and_masks_offline(of: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "GROUP_ROWS", 2)
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 12_000)
    done = written(make_table(tmp_path / "results", of), tmp_path / "out", "huggingface")
    assert (done.images, done.left_out) == (6, 0)
    shards = sorted((tmp_path / "out" / "data").glob("*.parquet"))
    assert len(shards) > 1 and done.files == len(shards) + 2
    assert max(pq.ParquetFile(path).metadata.row_group(0).num_rows for path in shards) == 2
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", READ, str(tmp_path / "out"), str(tmp_path / "read.npz")]
    read = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    assert json.loads(read.stdout) == [6, 0.75, "P"]
    with np.load(tmp_path / "read.npz") as arrays:
        for path, labels in of.items():
            mask, *image = arrays[path.as_uri()]
            np.testing.assert_array_equal(mask, labels)
            np.testing.assert_array_equal(np.stack(image, -1), decode(path.read_bytes()))
    assert json.loads((tmp_path / "out" / "id2label.json").read_text()) == {"0": "background", "1": "water & marsh", "2": "forest"}
    with pytest.raises(ResultsError, match="holds an earlier export"):
        written(make_table(tmp_path / "results", of), tmp_path / "out", "huggingface")


def test_a_photo_that_is_gone_or_another_one_now_is_left_out(of: dict, tmp_path: Path) -> None:
    table = make_table(tmp_path / "results", of)
    gone, changed, *_ = of
    gone.unlink()
    changed.write_bytes(photo(77))  # of the same size
    done = written(table, tmp_path / "out", "huggingface")
    assert done.images == 4
    assert "cannot be read" in done.skipped[gone.as_uri()]
    assert "changed since it was segmented" in done.skipped[changed.as_uri()]
    stored = pq.read_table(tmp_path / "out" / "data")["uri"].to_pylist()
    assert set(stored) == {path.as_uri() for path in of} - {gone.as_uri(), changed.as_uri()}
