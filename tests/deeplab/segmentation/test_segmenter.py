"""`deeplab.load(...).segment(...)`: images of every kind, one or many, with the options of the command line."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import deeplab
from deeplab import masks
from deeplab.classes import PETS
from deeplab.crf import DenseCRF
from deeplab.images import decoding
from deeplab.images.decoding import decode
from deeplab.models import checkpoint, ensemble
from deeplab.models.checkpoint import ModelError
from deeplab.scoring.model_predictor import predictor_of
from deeplab.scoring.predictor import Predictor
from deeplab.segmentation import image_source, windows
from deeplab.segmentation.options import MaskOptions
from deeplab.segmentation.segmenter import READERS
from tests.material import make_narrow, photo

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def segmenter(model: Path) -> deeplab.Segmenter:
    return deeplab.load(model, device="cpu")


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[bytes, np.ndarray]:
    """Labels of three photos, put together from a network and a CRF."""
    predictor, crf = Predictor(checkpoint.load(model).network, device="cpu"), DenseCRF.named("kazuto")
    photos = [photo(seed) for seed in range(3)]
    images = [decode(data) for data in photos]
    scores = [predictor.scores([image])[0] for image in images]
    return {data: crf.labels(image, s, stride=8) for data, image, s in zip(photos, images, scores, strict=True)}


def test_a_path_bytes_an_array_and_a_pillow_image_have_one_mask(
    segmenter: deeplab.Segmenter, expected: dict[bytes, np.ndarray], tmp_path: Path
) -> None:
    data, labels = next(iter(expected.items()))
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    kinds: list[Any] = [path, str(path), data, decode(data), Image.open(path), Image.open(io.BytesIO(data))]
    for image in kinds:
        assert np.array_equal(segmenter.segment(image).labels, labels)
    for image, mask in zip(kinds, segmenter.segment(kinds), strict=True):
        assert isinstance(mask, deeplab.Mask) and np.array_equal(mask.labels, labels), image
    assert [segmenter.segment(image).name for image in kinds[1:5]] == [str(path), f"{len(data):,} bytes", "an array", str(path)]


def test_a_turned_photo_with_transparency_is_the_same_as_a_file_and_as_a_pillow_image(
    segmenter: deeplab.Segmenter, tmp_path: Path
) -> None:
    picture = Image.open(io.BytesIO(photo(5))).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    exif = Image.Exif()
    exif[274] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    from_file = segmenter.segment(tmp_path / "turned.png")
    assert from_file.labels.shape == (picture.width, picture.height)
    assert np.array_equal(segmenter.segment(Image.open(tmp_path / "turned.png")).labels, from_file.labels)


def test_a_mask_says_what_it_holds(segmenter: deeplab.Segmenter, expected: dict[bytes, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(next(iter(expected)))
    mask = segmenter.segment(path)
    assert mask.labels.shape == (60, 80) and mask.labels.dtype == np.uint8
    counts = np.bincount(mask.labels.ravel(), minlength=3)
    assert mask.class_pixels == {name: count for name, count in zip(PETS.names, counts, strict=True) if count}
    assert mask.classes == tuple(mask.class_pixels) and len(mask.classes) > 1
    assert all(mask.region(name).sum() == count for name, count in mask.class_pixels.items())
    assert 0 < mask.confidence < 1 and mask.model == segmenter.model.label
    assert mask.refined == DenseCRF.named("kazuto").short()
    largest = max(mask.class_pixels, key=mask.class_pixels.__getitem__)
    assert repr(mask).startswith(f"<Mask of {path}: 60 x 80, {largest} ") and f"{mask.confidence:.3f}" in repr(mask)
    assert repr(segmenter) == f"<Segmenter {segmenter.model.label} on cpu: cat, dog>"
    with pytest.raises(ValueError, match=r"no class 'horse'.*background, cat, dog"):
        mask.region("horse")

    mask.save(tmp_path / "mask.png")
    assert np.array_equal(masks.decode_png((tmp_path / "mask.png").read_bytes()), mask.labels)
    with pytest.raises(ValueError, match=r"saved as \.png"):
        mask.save(tmp_path / "mask.jpg")
    picture = mask.overlay()
    assert picture.size == (80, 60)
    assert np.array_equal(np.asarray(picture), masks.overlay(decode(path.read_bytes()), mask.labels, PETS))
    with Image.open(io.BytesIO(mask._repr_png_())) as shown:
        assert shown.size == (80, 60)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        mask.overlay()


def test_many_images_come_in_order_and_a_broken_one_brings_its_error(
    segmenter: deeplab.Segmenter, expected: dict[bytes, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [tmp_path / "missing.jpg", b"no image", photo(0)[:300], np.zeros((4, 4), np.uint8), b""]
    images = [image for pair in zip(list(expected) * 2, [*broken, photo(0)], strict=True) for image in pair]
    before = threading.active_count()
    found = list(segmenter.segment(iter(images), progress=True))
    assert threading.active_count() == before
    for image, mask in zip(images, found, strict=True):
        if isinstance(mask, deeplab.Mask):
            assert isinstance(image, bytes) and np.array_equal(mask.labels, expected[image])
    errors = [mask.error for mask in found if isinstance(mask, deeplab.BrokenImage)]
    assert [type(mask) for mask in found] == [deeplab.Mask, deeplab.BrokenImage] * 5 + [deeplab.Mask] * 2
    assert errors[0] == "read: No such file or directory"
    assert [str(error).split(" ")[:2] for error in errors[1:]] == [
        ["decode:", "not"], ["decode:", "damaged"], ["decode:", "an"], ["decode:", "empty"]
    ]  # fmt: skip
    assert repr(found[1]) == f"<BrokenImage {tmp_path / 'missing.jpg'}: read: No such file or directory>"
    assert "12 images, " in capsys.readouterr().err
    assert list(segmenter.segment([])) == []


def test_one_broken_image_is_an_exception_that_names_it(segmenter: deeplab.Segmenter, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="an empty path; a path, the bytes of an image file"):
        segmenter.segment("")
    with pytest.raises(FileNotFoundError):
        segmenter.segment(tmp_path / "missing.jpg")
    (tmp_path / "half.jpg").write_bytes(photo(0)[:300])
    with pytest.raises(deeplab.ImageError, match=r"half\.jpg: damaged or truncated"):
        segmenter.segment(tmp_path / "half.jpg")
    (tmp_path / "most.jpg").write_bytes(photo(0)[:-200])
    with pytest.raises(deeplab.ImageError, match=r"most\.jpg: OSError: image file is truncated"):
        segmenter.segment(Image.open(tmp_path / "most.jpg"))
    with pytest.raises(deeplab.ImageError, match=r"\(2, 8, 8, 3\).*for several images, list\(array\)"):
        segmenter.segment(np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(deeplab.ImageError, match=r"4,800 pixels, over the limit of 100 \(max_pixels raises it\)"):
        segmenter.segment(photo(0), max_pixels=100)
    for image in (3, None):
        with pytest.raises(TypeError, match="a path, the bytes of an image file"):
            segmenter.segment(image)  # type: ignore[call-overload]


def test_a_generator_is_read_a_bounded_way_ahead_and_its_error_comes_after_the_masks_before_it(
    segmenter: deeplab.Segmenter,
) -> None:
    taken = []

    def camera(frames: int, failing: bool) -> Iterator[bytes]:
        for frame in range(frames):
            taken.append(frame)
            yield photo(frame)
        if failing:
            raise RuntimeError("the camera is gone")

    stream = segmenter.segment(camera(100, failing=False), crf=False)
    assert taken == []  # nothing happens before the first mask is asked for
    next(stream)
    assert len(taken) <= 16
    stream.close()  # type: ignore[attr-defined]
    taken.clear()
    masks_before = iter(segmenter.segment(camera(7, failing=True), crf=False))
    assert all(isinstance(next(masks_before), deeplab.Mask) for _ in range(7))
    with pytest.raises(RuntimeError, match="the camera is gone"):
        next(masks_before)


def test_images_of_many_pixels_are_decoded_in_windows_of_their_own(
    segmenter: deeplab.Segmenter, expected: dict[bytes, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "WINDOW_PIXELS", 5000)
    found = list(segmenter.segment(list(expected) * 2))
    assert [mask.labels.tolist() for mask in found if isinstance(mask, deeplab.Mask)] == [
        labels.tolist() for labels in [*expected.values()] * 2
    ]


def test_an_image_too_large_to_decode_whole_is_read_by_rows(segmenter: deeplab.Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(photo(3, 330, 260))).save(buffer, "PNG")
    data = buffer.getvalue()
    whole = segmenter.segment(data, crf=False, tile=193, overlap=64)
    monkeypatch.setattr(image_source, "MAX_PIXELS", 1000)
    monkeypatch.setattr(decoding, "decode", None)
    by_rows = segmenter.segment(data, crf=False, tile=193, overlap=64)
    assert (by_rows.labels == whole.labels).mean() > 0.999
    assert by_rows.confidence == pytest.approx(whole.confidence, abs=1e-3)
    many = list(segmenter.segment([data, photo(3, 330, 260)[:-1000]], tile=193, overlap=64))
    assert isinstance(many[0], deeplab.Mask) and many[0].refined == DenseCRF.named("kazuto").short()
    assert isinstance(many[1], deeplab.BrokenImage) and many[1].error.startswith("decode: ")


def test_an_ensemble_whose_scores_are_as_large_as_the_image(tmp_path: Path) -> None:
    sources = [checkpoint.read(make_narrow(tmp_path / name, "fcn8s", seed)) for seed, name in enumerate(("first", "second"))]
    ensemble.save(tmp_path / "both", "both", sources, "mean")
    both = deeplab.load(tmp_path / "both", device="cpu")
    photos = [photo(seed) for seed in range(3)]
    labels = predictor_of(checkpoint.load(tmp_path / "both"), device="cpu").labels([decode(data) for data in photos])
    for found, right in zip(both.segment(photos, crf=False), labels, strict=True):
        assert isinstance(found, deeplab.Mask) and np.array_equal(found.labels, right)
    refined = both.segment(photo(1, 330, 260), tile=193, overlap=64)  # in bands: larger than a tile
    assert refined.labels.shape == (330, 260) and refined.refined == DenseCRF.named("kazuto").short()


def test_options_have_the_names_defaults_and_meaning_of_the_command_line(segmenter: deeplab.Segmenter) -> None:
    from pipelines.options import SegmentOptions

    command = SegmentOptions.model_fields
    for option in dataclasses.fields(MaskOptions):
        assert option.default == command[option.name].default, option.name
    # What the command has beyond them is about archives, tables and clusters.
    assert set(command) - {option.name for option in dataclasses.fields(MaskOptions)} == {
        "archive", "results", "model", "commit_every", "limit", "include", "exclude", "max_error_rate", "retry_errors", "redo",
        "address", "start_timeout",
    }  # fmt: skip
    plain = segmenter.segment(photo(1), crf=False)
    assert plain.refined is None and plain.scored.startswith("standard stride8 scales1 tile1025/128")
    for chosen in ({"quality": "best"}, {"quality": "draft"}, {"crf_mode": "exact", "crf_params": "deeplab-v1", "flip": True}):
        mask, options = segmenter.segment(photo(1), **chosen), SegmentOptions(archive="a", results="r", **chosen)
        prepared, refinement = options.prepared(segmenter.model), options.refinement(segmenter.model)
        assert mask.scored == options.scored(prepared, precision=mask.scored.split()[-1])
        assert refinement is not None and mask.refined == refinement.short()
    assert "scales0.5/1 mean" in segmenter.segment(photo(1), scales=[0.5, 1.0], fusion="mean").scored
    for wrong in ({"quality": "perfect"}, {"crf_mode": "slow"}, {"scales": [9.0]}, {"tile": 64}, {"max_pixels": 0}):
        with pytest.raises(ValueError, match=r"accepted|exceed"):
            segmenter.segment(photo(1), **wrong)
    with pytest.raises(TypeError, match=r"no option colour; the options are quality, .*max_pixels"):
        segmenter.segment(photo(1), colour=True)
    with pytest.raises(ModelError, match="output stride"):
        segmenter.segment(photo(1), output_stride=7)


def test_two_settings_in_turns_are_prepared_once(segmenter: deeplab.Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [segmenter.segment(photo(1), crf=False, **chosen) for chosen in ({}, {"quality": "draft"})]
    monkeypatch.setattr(checkpoint.Model, "at_stride", None)
    monkeypatch.setattr("deeplab.segmentation.segmenter.predictor_of", None)
    again = [segmenter.segment(photo(1), crf=False, **chosen) for chosen in ({}, {"quality": "draft"})]
    assert [mask.labels.tolist() for mask in again] == [mask.labels.tolist() for mask in first]
    assert [mask.scored.split()[1] for mask in again] == ["stride8", "stride16"]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's entry points as an installation writes them, whatever is installed here."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][READERS]
    folder = tmp_path / "site" / "somewhere-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: somewhere\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[{READERS}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    monkeypatch.syspath_prepend(tmp_path / "site")


@pytest.mark.usefixtures("installed")
def test_models_in_a_registry_and_in_a_store_are_loaded_through_the_entry_point(model: Path, tmp_path: Path, s3: str) -> None:
    from pipelines.storage.model_registry import Registry

    label = checkpoint.load(model).label
    for place in (str(tmp_path / "registry"), f"{s3}/registry"):
        registry = Registry(place)
        entry = registry.publish(str(model))
        registry.move("prod", entry, {}, None)
        assert deeplab.load(f"{place}@prod", device="cpu").model.label == label
        with pytest.raises(ModelError, match="has no alias test"):
            deeplab.load(f"{place}@test")
    assert deeplab.load(f"{s3}/registry/{entry}", device="cpu").model.label == label
    with pytest.raises(ModelError, match=f"{s3}/nothing: cannot be read"):
        deeplab.load(f"{s3}/nothing")


def test_a_model_elsewhere_without_the_package_that_reads_it_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeplab.segmentation.segmenter.entry_points", lambda group: importlib.metadata.EntryPoints())
    with pytest.raises(ModelError, match=r"s3://models/a: models in stores .* bundled model is accepted: pets, voc"):
        deeplab.load("s3://models/a")
    with pytest.raises(ModelError, match=r"no model vox: .*pets, voc"):
        deeplab.load("vox")


def test_importing_the_package_does_not_wait_for_torch_and_its_face_brings_only_the_science() -> None:
    script = """
import sys, deeplab
light = {"torch", "numpy", "PIL"} & set(sys.modules)
deeplab.load
heavy = {"ray", "prefect", "boto3", "pyarrow", "pydantic", "torchvision", "pipelines", "flows"} & set(sys.modules)
print(light, heavy, dir(deeplab)[:5])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set() set() ['BrokenImage', 'ImageError', 'Mask', 'Segmenter', 'TYPE_CHECKING']"
    with pytest.raises(AttributeError, match=r"has no attribute 'segmnt'; it offers .*load"):
        deeplab.segmnt  # noqa: B018
