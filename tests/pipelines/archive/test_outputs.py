"""What our own commands wrote into an archive is passed over, and counted; what lies beside it is not."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from deeplab.data.datasets import LabelledFolder
from deeplab.files import MARKED_FILES, MARKER, LocalFiles, mark_files, mark_output
from flows.cli import app
from pipelines.archive import inventory
from pipelines.archive.image_lists import ArchiveError
from pipelines.exports import export
from pipelines.exports.formats import FORMATS
from pipelines.exports.sample_sheet import show
from pipelines.report.static_page import build
from pipelines.storage import filesystems
from pipelines.table.results_table import ResultsTable
from pipelines.train.packed_datasets import pack
from pipelines.upkeep.compaction import vacuum
from tests.material import make_archive, make_dataset, make_results, photo

MODEL = "pets@0123456789ab"


def taken(archive: object, tmp_path: Path) -> tuple[set[str], int]:
    """Names of the images listed, and how many outputs were passed over."""
    found = inventory.take(str(archive), tmp_path / "inventory.parquet")
    return {uri.rpartition("/")[2] for uri in pq.read_table(found.path)["uri"].to_pylist()}, found.outputs


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Photos with their results table in the same folder."""
    make_results(tmp_path / "all", photos=3, errors=0)
    return tmp_path / "all"


NAMES = {f"photo_{index:03d}.jpg" for index in range(3)}


@pytest.mark.parametrize("form", [name for name, form in FORMATS.items() if not form.rasterio])
def test_an_export_of_any_format_is_passed_over(form: str, archive: Path, tmp_path: Path) -> None:
    export.export(ResultsTable.open(str(archive / "results")), MODEL, archive / "out", form)
    assert taken(archive, tmp_path) == (NAMES, 2)


def test_an_export_beside_photos_is_passed_over_and_the_photos_are_not(archive: Path, tmp_path: Path) -> None:
    export.export(ResultsTable.open(str(archive / "results")), MODEL, archive / "photos", "png")
    assert len(list((archive / "photos").rglob("*.png"))) == 3
    assert taken(archive, tmp_path) == (NAMES, 5)
    (archive / "photos" / "a" / "new.png").write_bytes(photo(1))
    assert taken(archive, tmp_path) == ({*NAMES, "new.png"}, 5)


def test_sheets_reports_and_packs_are_passed_over(archive: Path, tmp_path: Path) -> None:
    table = ResultsTable.open(str(archive / "results"))
    show(table, MODEL, archive / "photos" / "sheet.png", 2)
    build(table, archive / "report", MODEL)
    data = make_dataset(tmp_path / "data", 3)
    pack([LabelledFolder(data, "train")], str(archive / "pack"))
    checked = CliRunner().invoke(app, ["dataset", "check", str(data), "--splits", "train", "--sheet", str(archive / "check.png")])
    assert checked.exit_code == 0, checked.output
    assert taken(archive, tmp_path) == (NAMES, 5)


def test_a_folder_that_is_named_itself_is_taken(archive: Path, tmp_path: Path) -> None:
    export.export(ResultsTable.open(str(archive / "results")), MODEL, archive / "out", "overlay")
    assert (len(taken(archive / "out", tmp_path)[0]), taken(archive / "out", tmp_path)[1]) == (3, 0)
    (archive / "photos").rename(tmp_path / "elsewhere")
    with pytest.raises(ArchiveError, match="2 outputs of deeplab passed over"):
        taken(archive, tmp_path)


def test_only_a_folder_that_was_empty_is_marked_as_a_whole(tmp_path: Path) -> None:
    make_archive(tmp_path / "photos", 1)
    assert not mark_output(LocalFiles(tmp_path / "photos")) and not (tmp_path / "photos" / MARKER).exists()
    assert mark_output(LocalFiles(tmp_path / "new")) and mark_output(LocalFiles(tmp_path), "also/new")
    assert mark_output(LocalFiles(tmp_path / "new"))
    for name in ("a.png", "b.png"):
        mark_files([tmp_path / "photos" / name])
    assert (tmp_path / "photos" / MARKED_FILES).read_text() == "a.png\nb.png\n"


def test_the_mark_is_nothing_to_a_tables_upkeep(archive: Path) -> None:
    table = ResultsTable.open(str(archive / "results"))
    assert vacuum(table, 0, delete=True) == []
    assert (archive / "results" / MARKER).is_file()


@pytest.mark.parametrize("page", [3, 1000])
def test_what_was_written_to_s3_is_passed_over(page: int, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.storage import s3 as store

    monkeypatch.setattr(store, "PAGE", page)
    for index in range(20):  # enough folders for threads, and with each of them a folder of ours below
        store.put(f"{s3}/archive/{index:02d}/0.jpg", photo(1))
    for folder in ("archive/07/ours", "archive/ours", "archive/09/deep/ours"):
        assert mark_output(filesystems.files(f"{s3}/{folder}"))
        for name in ("0.jpg", "below/0.jpg", "below/below/1.jpg", "9.jpg"):
            store.put(f"{s3}/{folder}/{name}", photo(1))
    store.put(f"{s3}/archive/07/z.jpg", photo(1))
    found = inventory.take(f"{s3}/archive", tmp_path / "i.parquet")
    assert (found.images, found.outputs) == (21, 3)
    assert inventory.take(f"{s3}/archive/ours", tmp_path / "i.parquet").images == 4
    assert not store.is_free(f"{s3}/archive/ours")
