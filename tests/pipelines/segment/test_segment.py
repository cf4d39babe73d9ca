"""From an archive to the table, on a real Ray: every image one row, and the right one."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deeplab import masks
from deeplab.crf import DenseCRF
from deeplab.images.decoding import decode
from deeplab.models import checkpoint
from deeplab.models.checkpoint import ModelError
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.settings import Scoring
from pipelines.options import SegmentOptions
from pipelines.segment.run import SegmentProgress, TooManyErrors, segment
from pipelines.table.results_table import ResultsTable
from tests.material import EXAMPLES, log_entries, make_archive, photo

pytestmark = pytest.mark.usefixtures("running_ray")


def options(archive: object, results: Path, model: Path, **more: object) -> SegmentOptions:
    defaults: dict[str, object] = {"crf": False, "scales": (1.0,), "max_error_rate": 1.0}
    return SegmentOptions(archive=str(archive), results=str(results), model=str(model), **{**defaults, **more})  # type: ignore[arg-type]


def rows(results: Path) -> dict[str, dict[str, object]]:
    """Rows by file name; fails when an image has two."""
    found = ResultsTable.open(str(results)).dataset().to_table().to_pylist()
    by_name = {row["uri"].rsplit("/", 1)[-1]: row for row in found}
    assert len(by_name) == len(found)
    return by_name


def test_masks_are_those_of_the_predictor_and_the_crf_on_the_same_photos(tmp_path: Path, model: Path) -> None:
    photos = EXAMPLES / "images"
    seen: list[SegmentProgress] = []
    chosen = options(photos, tmp_path / "results", model, crf=True, scales=(0.5, 1.0), limit=5, crf_params="deeplab-v1")
    summary = segment(chosen, seen.append)
    assert (summary.images, summary.errors, summary.already) == (5, 0, 0)
    predictor = Predictor(checkpoint.load(model).network, Scoring(scales=(0.5, 1.0)))
    crf = DenseCRF.named("deeplab-v1")
    total = 0
    for name, row in rows(tmp_path / "results").items():
        image = decode((photos / name).read_bytes())
        labels = crf.labels(image, scores=predictor.scores([image])[0], stride=8)
        found = masks.decode_png(row["mask"])  # type: ignore[arg-type]
        assert found.shape == image.shape[:2] == (row["height"], row["width"])
        # Another number of threads sums convolutions in another order; labels on a knife's edge may flip.
        assert (found == labels).mean() >= 0.9999
        counts = {"background": (found == 0).sum(), "cat": (found == 1).sum(), "dog": (found == 2).sum()}
        assert dict(row["class_pixels"]) == {key: int(n) for key, n in counts.items() if n}  # type: ignore[call-overload]
        assert (row["status"], row["error"], row["refined"]) == ("ok", None, crf.short())
        assert row["model"] == checkpoint.load(model).label
        total += found.size
    assert summary.class_shares["background"] + summary.class_shares["cat"] + summary.class_shares["dog"] == pytest.approx(1)
    assert seen[-1] == SegmentProgress("commit", 5, 5, 0, 5, summary.version, seconds=summary.seconds_by_stage)
    assert (summary.commits, sum(summary.images_by_node.values())) == (1, 5)
    assert {"read", "decode", "score", "refine", "encode"} <= set(summary.seconds_by_stage)


def test_a_second_run_has_nothing_to_do_and_later_ones_only_what_is_new_or_changed(tmp_path: Path, model: Path) -> None:
    archive = make_archive(tmp_path / "photos", 8)
    results = tmp_path / "results"
    assert segment(options(archive, results, model)).images == 8
    before = rows(results)
    version = ResultsTable.open(str(results)).version
    assert segment(options(archive, results, model)).images == 0
    assert ResultsTable.open(str(results)).version == version

    make_archive(archive, 2, first=8)
    (archive / "b" / "photo_000.jpg").write_bytes(photo(500))
    (archive / "b" / "photo_002.jpg").unlink()
    summary = segment(options(archive, results, model))
    assert (summary.images, summary.already) == (3, 6)
    found = ResultsTable.open(str(results)).dataset().to_table(columns=["uri", "version", "mask"]).to_pylist()
    assert len(found) == 11  # the changed photo has a row for each version, the deleted one keeps its row
    assert len({(row["uri"], row["version"]) for row in found}) == 11
    by_key = {(row["uri"], row["version"]): row["mask"] for row in found}
    assert all(by_key[row["uri"], row["version"]] == row["mask"] for row in before.values())


def test_a_run_commits_while_it_runs_each_time_under_a_transaction_of_its_own(tmp_path: Path, model: Path) -> None:
    archive = make_archive(tmp_path / "photos", 60)
    seen: list[SegmentProgress] = []
    summary = segment(options(archive, tmp_path / "results", model, crf=True, commit_every=0.05), seen.append)
    assert 1 < summary.commits <= 60 and summary.images == 60
    entries = log_entries(tmp_path / "results")
    numbers = [entry["txn"]["version"] for entry in entries if "txn" in entry and entry["txn"]["appId"].startswith(summary.run)]  # type: ignore[index]
    assert numbers == list(range(1, summary.commits + 1))
    commits = [entry["commitInfo"] for entry in entries if "commitInfo" in entry]
    counted = [int(c["images"]) for c in commits if c.get("run") == summary.run]  # type: ignore[attr-defined]
    assert len(counted) == summary.commits and sum(counted) == 60
    told = [progress for progress in seen if progress.phase in ("segment", "commit")]
    assert all(progress.committed <= progress.done <= progress.total == 60 for progress in told)
    assert [p.committed for p in told] == sorted(p.committed for p in told) and told[-1].committed == 60
    versions = [progress.version for progress in told if progress.phase == "commit"]
    assert versions == sorted(versions) and versions[-1] == summary.version  # type: ignore[type-var]


def test_rows_fill_files_however_often_a_run_commits(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.segment import sink

    monkeypatch.setattr(sink, "ROWS_PER_FILE", 20)
    archive = make_archive(tmp_path / "photos", 90)
    summary = segment(options(archive, tmp_path / "results", model, commit_every=3600))
    assert summary.commits == 1
    files = [pq.read_metadata(path).num_rows for path in (tmp_path / "results").rglob("*.parquet")]
    assert sum(files) == 90 and len(files) <= 5 and sorted(files)[1] >= 20


def test_another_model_writes_its_own_rows_beside_the_first(tmp_path: Path, model: Path) -> None:
    from tests.material import make_model

    archive = make_archive(tmp_path / "photos", 3)
    other = make_model(tmp_path / "other", seed=1, name="other")
    segment(options(archive, tmp_path / "results", model))
    assert segment(options(archive, tmp_path / "results", other)).images == 3
    table = ResultsTable.open(str(tmp_path / "results"))
    assert table.query("SELECT count(*), count(DISTINCT model) FROM results").fetchall() == [(6, 2)]
    assert len(table.models()) == 2


def test_broken_missing_and_odd_files_become_rows_with_the_reason(tmp_path: Path, model: Path) -> None:
    archive = make_archive(tmp_path / "photos", 3)
    (archive / "half.jpg").write_bytes(photo(1)[:300])
    (archive / "empty.jpg").write_bytes(b"")
    (archive / "text.jpg").write_text("no image")
    (archive / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(TooManyErrors, match="4 of 7 images") as caught:
        segment(options(archive, tmp_path / "results", model, max_error_rate=0.05))
    found = rows(tmp_path / "results")
    assert {name for name, row in found.items() if row["status"] == "ok"} == {f"photo_00{i}.jpg" for i in range(3)}
    assert str(found["half.jpg"]["error"]).startswith("decode: damaged or truncated")
    assert found["empty.jpg"]["error"] == "decode: empty file (0 bytes)"
    assert str(found["text.jpg"]["error"]).startswith("decode: not an image of an accepted format")
    assert found["dangling.jpg"]["error"] == "read: No such file or directory"
    assert sum(caught.value.summary.errors_by_reason.values()) == 4


def test_a_file_that_vanishes_after_the_listing_is_one_error_row(tmp_path: Path, model: Path) -> None:
    archive = make_archive(tmp_path / "photos", 3)
    uris = sorted(path.as_uri() for path in archive.rglob("*.jpg"))
    inventory = tmp_path / "inventory.parquet"
    pq.write_table(pa.table({"uri": uris, "version": ["1", "2", "3"], "bytes": [1, 2, 3]}), inventory)
    Path(uris[1].removeprefix("file://")).unlink()
    summary = segment(options(inventory, tmp_path / "results", model))
    assert (summary.images, summary.errors_by_reason) == (3, {"read: No such file or directory": 1})


def test_error_rows_are_left_alone_until_they_are_asked_for_again(tmp_path: Path, model: Path) -> None:
    archive = make_archive(tmp_path / "photos", 3)
    broken = archive / "late.jpg"
    broken.symlink_to(tmp_path / "late.jpg")
    results = tmp_path / "results"
    assert segment(options(archive, results, model)).errors == 1
    assert segment(options(archive, results, model)).images == 0
    again = segment(options(archive, results, model, retry_errors=True))
    assert (again.images, again.errors) == (1, 1)  # still missing: the row is replaced, not doubled
    assert len(rows(results)) == 4
    once_more = segment(options(archive, results, model, retry_errors=True))
    assert (once_more.images, len(rows(results))) == (1, 4)
    (tmp_path / "late.jpg").write_bytes(photo(9))
    fixed = segment(options(archive, results, model, retry_errors=True))
    assert (fixed.images, fixed.errors) == (1, 0)
    assert rows(results)["late.jpg"]["status"] == "ok"


def test_settings_are_in_the_row_and_masks_of_other_settings_are_made_again_only_with_redo(tmp_path: Path, model: Path) -> None:
    archive, results = make_archive(tmp_path / "photos", 3), tmp_path / "results"
    plain = options(archive, results, model, quality="draft", precision="float32")
    assert segment(plain).images == 3
    assert {row["scored"] for row in rows(results).values()} == {"draft stride16 scales1 tile1025/128 float32"}
    draft_masks = {name: row["mask"] for name, row in rows(results).items()}
    (archive / "new.jpg").write_bytes(photo(9))
    better = options(archive, results, model, scales=(0.5, 1.0), flip=True, crf=True, precision="float32")
    summary = segment(better)
    assert (summary.images, summary.made_otherwise) == (1, 3)
    redone = segment(better.model_copy(update={"redo": True}))
    assert (redone.images, redone.already, redone.made_otherwise, redone.replaced) == (3, 1, 0, 3)
    made = {name: (row["scored"], row["refined"]) for name, row in rows(results).items()}
    settings = ("standard stride8 scales0.5/1 max flip tile1025/128 float32", DenseCRF.named("kazuto").short())
    assert made == dict.fromkeys([*draft_masks, "new.jpg"], settings)
    assert all(rows(results)[name]["mask"] != mask for name, mask in draft_masks.items())
    assert segment(better.model_copy(update={"redo": True})).images == 0


def test_an_output_stride_that_the_network_cannot_have_is_refused_before_anything_is_done(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ModelError, match=r"mobilenet-v2-aspp cannot have output stride 4; 8, 16, 32 are accepted"):
        segment(options(make_archive(tmp_path / "photos", 1), tmp_path / "results", model, output_stride=4))
    assert not (tmp_path / "results").exists()


def test_a_photo_above_the_tile_limit_gets_a_whole_mask(tmp_path: Path, model: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "large.jpg").write_bytes(photo(3, 300, 500))
    segment(options(tmp_path / "photos", tmp_path / "results", model, tile=193, overlap=64))
    assert masks.decode_png(rows(tmp_path / "results")["large.jpg"]["mask"]).shape == (300, 500)  # type: ignore[arg-type]


def test_the_reason_of_a_run_that_ends_early_is_that_of_the_worker(tmp_path: Path) -> None:
    import ray

    from pipelines.segment.run import _reason, _root_cause

    def fail(block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise ModelError("the model is damaged")

    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.data.range(2).map_batches(fail).materialize()
    assert _reason(caught.value, _root_cause(caught.value)) == "ModelError: the model is damaged"


def test_images_that_another_run_did_meanwhile_are_left_out_and_counted(tmp_path: Path, model: Path) -> None:
    archive = make_archive(tmp_path / "photos", 4)
    results = tmp_path / "results"

    def interfere(progress: SegmentProgress) -> None:
        if progress.phase == "start" and not (results / "done").exists():
            (results / "done").touch()
            segment(options(archive, results, model))

    summary = segment(options(archive, results, model), interfere)
    assert (summary.images, summary.elsewhere) == (0, 4)
    assert len(rows(results)) == 4


def test_every_file_of_the_odd_collection_is_the_row_that_its_manifest_expects(tmp_path: Path, model: Path, shared: Path) -> None:
    odd = shared / "data" / "odd"
    with (odd / "manifest.tsv").open(newline="") as stream:
        expected = {row["file"]: row["expected"] for row in csv.DictReader(stream, delimiter="\t")}
    # The manifest says what plain Pillow does; here HEIF is read, and floats are refused.
    expected |= {"exif/heic__samplefilehub.heif": "ok", "pillow/10ct_32bit_128.tiff": "error"}
    inventory = tmp_path / "list.txt"
    inventory.write_text("\n".join((odd / name).as_uri() for name in expected))
    segment(options(inventory, tmp_path / "results", model, scales=(0.2,)))  # 59 megapixels are among them
    found = ResultsTable.open(str(tmp_path / "results")).dataset().to_table(columns=["uri", "status", "error"]).to_pylist()
    status = {os.path.relpath(row["uri"].removeprefix(odd.as_uri()), "/"): row["status"] for row in found}
    assert len(found) == len(expected)
    assert {name: status.get(name.replace(" ", "%20")) for name in expected} == expected
    assert all(row["error"] and "\n" not in row["error"] for row in found if row["status"] == "error")


def test_a_plan_made_from_a_table_with_removed_rows_does_them_again(tmp_path: Path, model: Path) -> None:
    archive = make_archive(tmp_path / "photos", 3)
    results = tmp_path / "results"
    segment(options(archive, results, model))
    ResultsTable.open(str(results)).delta.delete()
    assert segment(options(archive, results, model)).images == 3
    assert len(rows(results)) == 3


def test_confidence_is_the_mean_winning_probability(tmp_path: Path, model: Path) -> None:
    archive = make_archive(tmp_path / "photos", 1)
    segment(options(archive, tmp_path / "results", model))
    image = decode((archive / "b" / "photo_000.jpg").read_bytes())
    scores = Predictor(checkpoint.load(model).network).scores([image])[0].astype(np.float64)
    probabilities = np.exp(scores) / np.exp(scores).sum(0)
    assert rows(tmp_path / "results")["photo_000.jpg"]["confidence"] == pytest.approx(probabilities.max(0).mean(), abs=1e-3)
