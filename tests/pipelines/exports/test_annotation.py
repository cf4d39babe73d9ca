"""Label Studio tasks and CVAT annotations, read back by decoders written from the tools' own formats."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import numpy as np
import pytest

from deeplab.classes import CITYSCAPES
from pipelines.exports import label_studio
from pipelines.table.table_errors import ResultsError
from tests.pipelines.exports.exported import LAND, make_table, regions, table_of, written


class Bits:
    """The reader of thi.ng's bit streams, as Label Studio's interface has it."""

    def __init__(self, data: list[int]) -> None:
        self.bits, self.at = "".join(f"{byte:08b}" for byte in data), 0

    def read(self, count: int) -> int:
        self.at += count
        return int(self.bits[self.at - count : self.at], 2)


def unpacked(data: list[int]) -> np.ndarray:
    """rle-pack's decoder: a bit that says whether one value is repeated or all of them follow, a size, a count, values."""
    stream = Bits(data)
    total, word = stream.read(32), stream.read(5) + 1
    sizes = [stream.read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        repeated = stream.read(1)
        count = stream.read(sizes[stream.read(2)]) + 1
        values += [stream.read(word)] * count if repeated else [stream.read(word) for _ in range(count)]
    return np.array(values, np.uint8)


# What the encoder of label-studio-sdk 2.0.19 makes of these (converter/brush.py, mask2rle), run and copied.
FROM_THE_SDK = [
    ([[0, 1, 1, 0], [0, 0, 1, 0]], [0, 0, 0, 32, 57, 27, 252, 96, 19, 255, 219, 0, 143, 254, 48, 0]),
    (np.ones((129, 130)), [0, 1, 6, 8, 57, 27, 255, 255, 255, 255, 224, 192, 255, 224]),
]


@pytest.mark.parametrize(("region", "expected"), FROM_THE_SDK, ids=["small", "longer than the largest run"])
def test_brush_rle_is_what_label_studios_own_encoder_makes(region: object, expected: list[int]) -> None:
    assert label_studio.rle(np.array(region, bool)) == expected


@pytest.fixture
def of(tmp_path: Path) -> dict[Path, np.ndarray]:
    names = ("a/x & y.jpg", 'b/"z" \N{SNOWMAN}.jpg', "b/deep/w.png")
    return {tmp_path / "photos" / name: regions(40, 53, 3, seed) for seed, name in enumerate(names)}


def test_label_studio_predictions_decode_to_the_same_masks(of: dict, tmp_path: Path) -> None:
    done = written(make_table(tmp_path / "results", of), tmp_path / "out", "label-studio")
    assert (done.files, done.images, done.left_out) == (2, 3, 0)
    config = ElementTree.parse(tmp_path / "out" / "label-config.xml").getroot()
    (image,), (brush,) = config.iter("Image"), config.iter("BrushLabels")
    colours = {label.get("value"): label.get("background") for label in brush.iter("Label")}
    assert colours == {"water & marsh": "#0000ff", "forest": "#008000"}
    tasks = json.loads((tmp_path / "out" / "tasks-0001.json").read_text())
    seen_paths = set()
    for task in tasks:
        # Label Studio joins its document root, here the folder above the archive's, and the query's d.
        path = tmp_path / parse_qs(urlsplit(task["data"]["image"]).query)["d"][0]
        labels, seen = of[path], np.zeros((40, 53), int)
        (prediction,) = task["predictions"]
        assert (prediction["score"], prediction["model_version"]) == (0.75, "m@000000000000")
        for result in prediction["result"]:
            assert (result["from_name"], result["to_name"]) == (brush.get("name"), image.get("name"))
            assert (result["original_width"], result["original_height"]) == (53, 40)
            pixels = unpacked(result["value"]["rle"]).reshape(40, 53, 4)
            assert set(np.unique(pixels)) <= {0, 255}
            seen[pixels[..., 3] == 255] = LAND.names.index(result["value"]["brushlabels"][0])
        np.testing.assert_array_equal(seen, labels)
        seen_paths.add(path)
    assert seen_paths == set(of)


def test_label_studio_tasks_are_cut_into_files_and_earlier_ones_refused(
    of: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_studio, "FILE_BYTES", 1000)
    table = make_table(tmp_path / "results", of)
    assert written(table, tmp_path / "out", "label-studio").files == 4
    found = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").glob("tasks-*.json"))]
    assert [len(tasks) for tasks in found] == [1, 1, 1]
    with pytest.raises(ResultsError, match="holds an earlier export"):
        written(table, tmp_path / "out", "label-studio")


def test_label_studio_is_given_photos_on_s3_by_uri_and_none_inside_shards(tmp_path: Path) -> None:
    names = ["s3://bucket/photos/a b.jpg", "s3://bucket/photos/many.tar#c.jpg"]
    table = table_of(tmp_path / "results", {name: regions(8, 8, 3) for name in names})
    done = written(table, tmp_path / "out", "label-studio")
    assert done.images == 1 and list(done.skipped) == names[1:] and "shards" in done.skipped[names[1]]
    [task] = json.loads((tmp_path / "out" / "tasks-0001.json").read_text())
    assert task["data"]["image"] == names[0]


def read_cvat(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Masks by image name, as CVAT's importer reads them: runs by rows in a box, first those of 0."""
    found = {}
    for image in ElementTree.parse(path).getroot().iter("image"):
        labels = np.full((int(image.get("height", 0)), int(image.get("width", 0))), -1)
        for mask in image.iter("mask"):
            left, top, width, height = (int(mask.get(key, "")) for key in ("left", "top", "width", "height"))
            runs = [int(count) for count in mask.get("rle", "").split(",")]
            inside = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
            box = labels[top : top + height, left : left + width]
            assert (box[inside == 1] == -1).all()
            box[inside == 1] = names.index(mask.get("label", ""))
        found[image.get("name", "")] = labels
    return found


def test_cvat_masks_decode_to_the_same_masks(of: dict, tmp_path: Path) -> None:
    done = written(make_table(tmp_path / "results", of), tmp_path / "out", "cvat")
    assert (done.files, done.images, done.left_out) == (1, 3, 0)
    found = read_cvat(tmp_path / "out" / "annotations.xml", LAND.names)
    assert {tmp_path / "photos" / name for name in found} == set(of)
    for name, labels in found.items():
        np.testing.assert_array_equal(np.maximum(labels, 0), of[tmp_path / "photos" / name])
    labels = ElementTree.parse(tmp_path / "out" / "annotations.xml").findall("./meta/task/labels/label/name")
    assert [label.text for label in labels] == ["water & marsh", "forest"]


def test_cvat_has_class_0_where_it_is_no_background(tmp_path: Path) -> None:
    labels = regions(30, 31, len(CITYSCAPES))
    path = tmp_path / "photos" / "a.jpg"
    written(make_table(tmp_path / "results", {path: labels}, CITYSCAPES), tmp_path / "out", "cvat")
    np.testing.assert_array_equal(read_cvat(tmp_path / "out" / "annotations.xml", CITYSCAPES.names)["a.jpg"], labels)
