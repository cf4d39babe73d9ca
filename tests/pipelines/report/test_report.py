"""The report page: its figures against rows counted by hand, hostile names, photos that are gone, and tables of all kinds."""

from __future__ import annotations

import io
import json
import re
import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from PIL import Image
from starlette.testclient import TestClient

from deeplab.masks import decode_png
from pipelines.report import gallery
from pipelines.report.figures import gather
from pipelines.report.server import application
from pipelines.report.static_page import ReportError, build
from pipelines.table.commit import write_part
from pipelines.table.results_table import ResultsTable
from pipelines.table.schema import FILE_SCHEMA, FORMAT, FORMAT_KEY, SCHEMA
from pipelines.table.snapshot import Snapshot
from pipelines.table.table_errors import ResultsError
from tests.material import START, make_results

MODEL = "pets@0123456789ab"


def opened(results: Path) -> ResultsTable:
    return ResultsTable.open(str(results))


def embedded(page: str) -> dict[str, object]:
    """What the gallery's script finds in the page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    told: dict[str, object] = json.loads(found[1])
    return told


def test_figures_are_those_of_the_rows(tmp_path: Path) -> None:
    make_results(tmp_path, photos=8, errors=3)
    results = make_results(tmp_path, photos=4, errors=0, run="run-2", start=START + timedelta(hours=1))
    table = opened(results)
    with Snapshot(table, MODEL) as rows:
        facts = gather(rows)
    assert (facts.images, facts.errors, facts.version) == (15, 3, table.version)
    assert [(run.name, run.images, run.errors) for run in facts.runs] == [("run-2", 4, 0), ("run-1", 11, 3)]
    assert facts.runs[1].seconds == 20 and facts.runs[1].rate == pytest.approx(11 / 20)
    assert sum(rate for _, rate in facts.throughput) == pytest.approx(4)  # slices of a second
    assert facts.seconds == {"score": 30.0, "refine": 10.0}
    stored = [row for row in table.dataset().to_table().to_pylist() if row["status"] == "ok"]
    for run, shares in (("run-2", facts.shares), ("run-1", facts.before)):
        labels = np.concatenate([decode_png(row["mask"]).ravel() for row in stored if row["run"] == run])
        for index, name in enumerate(("background", "cat", "dog")):
            assert shares[name] == pytest.approx((labels == index).mean())
    assert facts.before_name == "run-1"
    assert sum(facts.histogram) == 12
    by_hand, _ = np.histogram([row["confidence"] for row in stored], bins=20, range=(0, 1))
    assert abs(np.array(facts.histogram) - by_hand).sum() <= 4  # float32 on an edge may fall to either side
    assert facts.reasons == [
        ("decode: damaged or truncated: at byte N", 2, ["/photos/broken-0.jpg", "/photos/broken-2.jpg"]),
        ("decode: empty file (N bytes)", 1, ["/photos/broken-1.jpg"]),
    ]


def test_the_page_is_whole_and_asks_nothing_of_anyone(tmp_path: Path) -> None:
    made = build(opened(make_results(tmp_path)), tmp_path / "report", MODEL)
    page = made.page.read_text()
    assert not re.search(r"https?://", page)
    data = embedded(page)
    cards = data["cards"]
    assert isinstance(cards, list) and len(cards) == 11 and data["total"] == 11
    for card in cards:
        if card["error"] is None:
            with Image.open(tmp_path / "report" / card["photo"]) as photo, Image.open(tmp_path / "report" / card["mask"]) as mask:
                assert photo.size == mask.size == (card["size"][1], card["size"][0])
                assert mask.info["transparency"] == 0
    assert json.loads((tmp_path / "report" / "deeplab-report.json").read_text())["errors"] == 3


def test_hostile_names_and_reasons_stay_text(tmp_path: Path) -> None:
    results = make_results(tmp_path, photos=2, errors=0)
    table = opened(results)
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&quot;"
    row = {
        "uri": f"file:///{evil}",
        "version": "1",
        "status": "error",
        "error": f"decode: {evil}",
        "run": "run-9",
        "segmented_at": START,
    }
    part = write_part(table.uri, MODEL, pa.Table.from_pylist([row], schema=FILE_SCHEMA))
    table.commit("chunk-evil", 1, [part.add_action(MODEL)], model=MODEL)
    page = build(opened(results), tmp_path / "report", MODEL).page.read_text()
    assert "<img src=x" not in page and "alert(1)</script>" not in page
    assert page.count("</script>") == 2
    cards = embedded(page)["cards"]
    assert isinstance(cards, list) and any(card["error"] == f"decode: {evil}" for card in cards)


def test_a_photo_that_is_gone_or_another_leaves_its_mask(tmp_path: Path) -> None:
    results = make_results(tmp_path, photos=3, errors=0)
    first, second, _ = sorted((tmp_path / "photos").rglob("*.jpg"))
    first.unlink()
    buffer = io.BytesIO()
    Image.new("RGB", (5, 5)).save(buffer, "JPEG")
    second.write_bytes(buffer.getvalue())
    made = build(opened(results), tmp_path / "report", MODEL)
    assert len(made.gone) == 2
    cards = embedded(made.page.read_text())["cards"]
    assert isinstance(cards, list)
    lost = [card for card in cards if "gone" in card]
    assert len(lost) == 2 and all("mask" in card and "photo" not in card for card in lost)
    assert {"No such file" in card["gone"] or "its mask" in card["gone"] for card in lost} == {True}


def test_tables_without_masks_or_without_rows_have_a_page_that_says_so(tmp_path: Path) -> None:
    only_errors = build(opened(make_results(tmp_path / "a", photos=0, errors=2)), tmp_path / "errors", MODEL)
    assert "No image has a mask" in only_errors.page.read_text()
    empty = ResultsTable.ensure(str(tmp_path / "b"))
    empty.register(MODEL, opened(tmp_path / "a" / "results").models()[MODEL])
    empty.refresh()
    assert "No rows of this model yet" in build(empty, tmp_path / "empty", MODEL).page.read_text()


def test_a_table_that_is_written_to_meanwhile_is_shown_as_it_was(tmp_path: Path) -> None:
    results = make_results(tmp_path, photos=4, errors=0)
    before = opened(results)
    make_results(tmp_path, photos=6, errors=2, run="run-2")
    assert build(before, tmp_path / "report", MODEL).facts.images == 4
    assert build(opened(results), tmp_path / "report", MODEL).facts.images == 12


def test_a_table_of_an_older_schema_is_refused_by_its_columns(tmp_path: Path) -> None:
    older = pa.schema([field for field in SCHEMA if field.name != "confidence"])
    DeltaTable.create(str(tmp_path / "old"), older, configuration={FORMAT_KEY: FORMAT}, raise_if_key_not_exists=False)
    with pytest.raises(ResultsError, match="confidence missing"):
        opened(tmp_path / "old")


def test_only_an_earlier_report_is_replaced(tmp_path: Path) -> None:
    table = opened(make_results(tmp_path, photos=2, errors=0))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ReportError, match="exists and is not a report"):
        build(table, tmp_path / "mine", MODEL)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    build(table, tmp_path / "report", MODEL)
    shutil.rmtree(tmp_path / "report" / "pictures")
    build(table, tmp_path / "report", MODEL)
    assert (tmp_path / "report" / "pictures").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "photos", "report", "results"]


def test_a_sample_has_the_least_confident_and_errors_of_every_reason(tmp_path: Path) -> None:
    with Snapshot(opened(make_results(tmp_path, photos=20, errors=12)), MODEL) as rows:
        cards = gallery.sample(rows, 10)
    assert len(cards) == 10
    assert {round(card["confidence"], 2) for card in cards if card["confidence"] is not None} >= {0.5, 0.55}
    assert len({card["error"].split(":")[1] for card in cards if card["error"]}) == 2


def test_the_served_page_filters_and_pages_over_all_rows_and_gives_nothing_else(tmp_path: Path) -> None:
    with Snapshot(opened(make_results(tmp_path, photos=30, errors=4)), MODEL) as rows:
        client = TestClient(application(rows), base_url="http://127.0.0.1")
        assert "no server" not in client.get("/").text and client.get("/").status_code == 200

        def ask(**query: object) -> tuple[int, list[dict[str, object]]]:
            told = client.get("/rows", params={key.rstrip("_"): str(value) for key, value in query.items()}).json()
            return told["total"], told["cards"]

        assert ask()[0] == 34 and len(ask()[1]) == 24 and len(ask(offset=24)[1]) == 10
        assert {card["id"] for card in ask()[1]}.isdisjoint({card["id"] for card in ask(offset=24)[1]})
        assert ask(kind="errors")[0] == 4 and all(card["error"] for card in ask(kind="errors")[1])
        confidences = [card["confidence"] for card in ask(kind="low")[1]]
        assert len(confidences) == 3 and confidences == sorted(confidences)  # type: ignore[type-var]
        assert ask(class_=2)[0] == 15
        assert ask(name="PHOTO_01")[0] == 10
        number = ask(kind="low")[1][0]["id"]
        photo, mask = client.get(f"/photo/{number}"), client.get(f"/mask/{number}")
        assert photo.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(mask.content)).mode == "P"
        gone = ask(name="photo_009")[1][0]["id"]
        min((tmp_path / "photos").rglob("*_009.jpg")).unlink()
        assert "cannot be shown" in client.get(f"/photo/{gone}").text and client.get(f"/mask/{gone}").status_code == 200
        for path in (
            "/photo/999999",
            f"/photo/{ask(kind='errors')[1][0]['id']}",
            "/photo/../../etc/passwd",
            "/photo/x",
            f"/other/{number}",
        ):
            assert client.get(path).status_code == 404
        for query in ("limit=0", "limit=1000", "offset=-1", "kind=x", "class=99", "offset=x"):
            assert client.get(f"/rows?{query}").status_code == 400
        assert client.get("/", headers={"host": "evil.example"}).status_code == 400
