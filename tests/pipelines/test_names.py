"""Names that somebody else chose: of models, keys, members, stems and places. None leaves its folder, breaks a table or is lost."""

from __future__ import annotations

import json
import os
import re
import tarfile
import uuid
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.transaction import AddAction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray.util.metrics import Gauge

from deeplab.data.datasets import LabelledFolder
from deeplab.errors import UserError
from deeplab.files import MARKER
from deeplab.models import checkpoint
from deeplab.models.checkpoint import ModelError
from deeplab.safe_names import PART_BYTES, InvalidName, folder_of, model_name, relative_path, stem
from pipelines.archive import inventory, shards
from pipelines.exports import export
from pipelines.exports.sample_sheet import show
from pipelines.options import EvaluateOptions, SegmentOptions, TrainOptions
from pipelines.report import gallery, static_page
from pipelines.segment import prometheus
from pipelines.segment.run import segment
from pipelines.storage import filesystems
from pipelines.storage.model_registry import Registry, RegistryError
from pipelines.table.commit import row_key, without_rows, write_part
from pipelines.table.replacement import Replacement
from pipelines.table.results_table import ResultsTable
from pipelines.table.schema import FILE_SCHEMA
from pipelines.table.snapshot import Snapshot
from pipelines.table.table_errors import ResultsError
from pipelines.train import evaluation, packed_datasets
from pipelines.upkeep import repair, verification
from pipelines.upkeep.compaction import compact, drop_model, vacuum
from pipelines.upkeep.status import status
from tests.examples import examples
from tests.material import CARD, CLASSES, make_dataset, make_model, photo, put, row

quick = settings(
    max_examples=examples(20),
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# What files, keys and members are called: any text with the characters that paths and URIs care about, bytes that are no UTF-8 too.
ODD = [" ", "%41", "%2F", "%", "#", "?", "..", ".", "/", "//", "\\", "é", "e\u0301", "あ", "\udce9", "\x00", "\n", "\x7f", "\u202e"]
anything = st.lists(st.one_of(st.sampled_from(ODD), st.text(min_size=1, max_size=12)), min_size=1, max_size=8).map("".join)
NAMES = ["my model", "a%41b", "a#b", "a?b", "mon modèle", "日本", "it's [b]", "a=b&c;d", "+", "%2e%2e", 'q"|<>*:^']


def rows(*names: str, state: str = "ok", run: str = "run-1") -> pa.Table:
    changed = {} if state == "ok" else {"status": "error", "error": "decode: broken", "mask": None, "class_pixels": None}
    return pa.Table.from_pylist([row(name, run=run, **changed) for name in names], schema=FILE_SCHEMA)


def listed(folder: Path) -> set[str]:
    """Every file and folder below one, by its path."""
    return {os.path.join(top, name) for top, folders, files in os.walk(folder) for name in [*folders, *files]}


@given(anything)
@settings(max_examples=examples(200), derandomize=True)
def test_any_name_becomes_a_path_below_its_folder_and_two_names_two_paths(name: str) -> None:
    path = relative_path(name, room=5)
    parts = path.split("/")
    assert all(part not in ("", ".", "..") for part in parts)
    assert all(len(os.fsencode(part)) <= PART_BYTES for part in parts)
    assert len(os.fsencode(parts[-1])) <= PART_BYTES - 5
    assert not re.search(r"[\x00-\x1f\x7f]", path)
    assert Path(os.path.normpath(f"/folder/{path}")) == Path("/folder") / path
    if path == name:
        assert relative_path(f"{name}/..") != relative_path(f"{name}/.")
    else:
        assert relative_path(f"{name}\x00") != relative_path(f"{name}\x01") != path


def test_a_stem_loses_one_extension_of_its_last_part() -> None:
    names = {"a.b/c.d.jpg": "a.b/c.d", "a.b/c": "a.b/c", ".jpg": ".jpg", "a/..": "a/..", "é.x.png": "é.x", "a.": "a"}
    assert {name: stem(name) for name in names} == names


@given(st.one_of(anything, st.sampled_from(NAMES)))
@settings(max_examples=examples(200), derandomize=True)
def test_a_model_may_be_called_what_is_one_printable_part_of_a_path(name: str) -> None:
    try:
        assert model_name(name) == name
    except InvalidName:
        assert not name.isprintable() or re.search(r"[/\\@]|^\.|^ | $", name) or len(name.encode()) > 70
        return
    assert name.isprintable()
    assert len(Path(name).parts) == 1
    folder = folder_of(f"{name}@0123456789ab")
    assert unquote(folder) == f"{name}@0123456789ab"
    assert re.fullmatch(r"[A-Za-z0-9._~@%-]{1,249}", folder)


def test_a_name_is_refused_where_it_is_read_made_and_given(tmp_path: Path, model: Path) -> None:
    loaded = checkpoint.load(model)
    for bad in ("a/b", "x/../../../../evilout", "..", ".hidden", "a@b", "a\nb", " a", "a\\b", "", "x" * 71):
        with pytest.raises(ModelError, match="a model cannot be called"):
            checkpoint.save(tmp_path / "saved", loaded.network, {**loaded.card, "name": bad})
        assert not (tmp_path / "saved").exists()
        with pytest.raises(ValueError, match="a model cannot be called"):
            TrainOptions(dataset="d", model_out="m", name=bad)
        folder = tmp_path / "read"
        folder.mkdir(exist_ok=True)
        (folder / checkpoint.WEIGHTS).write_bytes((model / checkpoint.WEIGHTS).read_bytes())
        (folder / checkpoint.CARD).write_text(json.dumps({**loaded.card, "name": bad}))
        with pytest.raises(ModelError, match=r"model\.json: a model cannot be called"):
            checkpoint.load(folder)


def test_the_folders_decoded_name_is_the_models_and_one_that_cannot_be_asks_for_a_name(tmp_path: Path) -> None:
    from pipelines.train.ray_train import train

    data = make_dataset(tmp_path / "data")
    given = {"dataset": str(data), "steps": 1, "crop": 33, "batch_size": 2, "device": "cpu", "loaders": 0}
    train(TrainOptions(model_out=str(tmp_path / "mon modèle#1"), **given))  # type: ignore[arg-type]
    assert checkpoint.load(tmp_path / "mon modèle#1").name == "mon modèle#1"
    before = listed(tmp_path)
    with pytest.raises(UserError, match="--name"):
        train(TrainOptions(model_out=str(tmp_path / "a@b"), **given))  # type: ignore[arg-type]
    assert listed(tmp_path) == before


def test_a_registry_keeps_odd_names_and_follows_no_entry_out_of_itself(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "regis try#"))
    entry = registry.publish(str(make_model(tmp_path / "m", name="mon modèle %41#?")))
    assert (tmp_path / "regis try#" / entry / "model.json").is_file()
    registry.move("live", entry, {}, None)
    assert checkpoint.parse(*registry.read(entry)).label == registry.alias("live").label  # type: ignore[union-attr]
    with pytest.raises(UserError, match="leads outside"):
        registry.read("../m")
    with pytest.raises(RegistryError):
        registry.alias("../m")


def exercise(uri: str, name: str) -> None:
    """Every operation on a table of one model, with the readers' answers after each."""
    label = f"{name}@0123456789ab"
    table = ResultsTable.ensure(uri)
    table.register(label, {**CARD, "name": name})

    def uris() -> list[str]:
        opened = ResultsTable.open(uri)
        location, stored = filesystems.delta_location(opened.uri), filesystems.delta_options(opened.uri)
        dataset = DeltaTable(location, storage_options=stored).to_pyarrow_dataset()
        found = sorted(dataset.to_table(["uri"])["uri"].to_pylist())
        assert sorted(uri for (uri,) in duckdb.sql("SELECT uri FROM dataset WHERE model = $1", params=[label]).fetchall()) == found
        frames = [polars.scan_pyarrow_dataset(dataset)]
        if re.fullmatch(r"[\w/.-]+", location, re.ASCII):  # its own reader of Delta does not find other places
            frames.append(polars.scan_delta(location))
        for frame in (each.select("uri", "model").collect() for each in frames):
            assert (sorted(frame["uri"]), set(frame["model"]) - {label}) == (found, set())
        assert vacuum(opened, 0) == sorted_orphans(opened, label)
        return found

    table.commit("chunk-1", 1, [write_part(table.uri, label, rows("a")).add_action(label)], model=label)
    part = write_part(table.uri, label, rows("b", "c", state="error"))
    table.commit("chunk-2", 1, [part.add_action(label)], model=label)
    assert uris() == ["file:///a", "file:///b", "file:///c"]
    compact(ResultsTable.open(uri))  # the library's own files lie in a folder of its own spelling
    table.refresh()
    kept, removes = without_rows(table, label, [row_key("file:///b", "1")], Replacement(errors=True))
    parts = [*kept, write_part(table.uri, label, rows("b", run="run-2"))]
    table.commit("chunk-3", 1, [part.add_action(label) for part in parts], removes, model=label)
    assert uris() == ["file:///a", "file:///b", "file:///c"]
    opened = ResultsTable.open(uri)
    found = verification.verify(opened)
    assert (found.rows, found.problems) == (3, [])
    assert [entry["model"] for entry in status(opened)["models"]] == [label]
    assert opened.pick_model(name) == opened.pick_model(label) == opened.pick_model(None) == label
    assert repair.repair(opened).rows == 0
    assert drop_model(opened, label) == 3
    assert uris() == []


def sorted_orphans(table: ResultsTable, label: str) -> list[str]:
    """What a vacuum may take: nothing that the log names."""
    offered = vacuum(table, 0)
    assert not set(offered) & (set(table.files(label)) | {unquote(path) for path in table.files(label)})
    return offered


printable = anything.filter(lambda name: _allowed(name))


def _allowed(name: str) -> bool:
    try:
        return bool(model_name(name))
    except InvalidName:
        return False


@given(
    st.one_of(st.sampled_from(NAMES), printable),
    st.one_of(st.sampled_from(["results", *NAMES]), anything.filter(lambda name: name not in (".", ".."))),
)
@quick
def test_every_table_that_can_be_made_can_be_kept_whatever_it_and_its_model_are_called(
    tmp_path: Path, name: str, place: str
) -> None:
    folder = tmp_path / uuid.uuid4().hex
    folder.mkdir(parents=True)
    below = place.replace("/", "_").replace("\x00", "_")
    if re.search(r"%[0-9A-Fa-f]{2}|[\\\[\]^|\x00-\x1f\x7f\udc80-\udcff]", below):
        with pytest.raises(filesystems.StorageError, match="cannot lie there"):
            ResultsTable.ensure(str(folder / below))
        assert not listed(folder)  # refused before anything was made
    else:
        exercise(str(folder / below), name)
    assert {path for path in listed(folder) if path != f"{folder / below}" and not path.startswith(f"{folder / below}/")} == set()


@pytest.mark.parametrize("place", ["plain", "sp ace/é あ", "a#b?c", "[x]^|{}", "a+b&c=d;e'f\"g"])
def test_on_s3_tables_of_any_name_can_be_kept(s3: str, place: str) -> None:
    exercise(f"{s3}/{place}", NAMES[len(place) % len(NAMES)])


@pytest.mark.parametrize("place", ["a%20b", "a\\b"])
def test_on_s3_too_a_place_that_would_be_mistaken_for_another_is_refused_first(s3: str, place: str) -> None:
    from pipelines.storage import s3 as store

    store.put(f"{s3}/photo.jpg", b"")  # the server makes the bucket at the first write
    with pytest.raises(filesystems.StorageError, match="cannot lie there"):
        ResultsTable.ensure(f"{s3}/{place}")
    assert [uri for uri, _, _ in store.list_objects(s3)] == [f"{s3}/photo.jpg"]


def write_as_before(table: ResultsTable, chunk: str, label: str, *names: str) -> Path:
    """Commit rows as versions before this rule did: the label raw in the URI, which then was decoded, and in the log."""
    relative = f"model={label}/part-{uuid.uuid4().hex}.parquet"
    target = Path(unquote(urlsplit(f"{table.uri}/{relative}").path))
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows(*names), target)
    stats = json.dumps({"numRecords": len(names)})
    table.commit(chunk, 1, [AddAction(relative, target.stat().st_size, {"model": label}, 0, True, stats)], model=label)
    return target


@pytest.mark.parametrize("name", ["my%20model", "mon%20mod%C3%A8le", "100%41"])
def test_a_table_that_was_broken_by_a_name_is_explained_and_mended(tmp_path: Path, name: str) -> None:
    label, sound = f"{name}@0123456789ab", "m@000000000000"
    table = ResultsTable.ensure(str(tmp_path / "results"))
    for each in (label, sound):
        table.register(each, CARD)
    table.commit("chunk-0", 1, [write_part(table.uri, sound, rows("s")).add_action(sound)], model=sound)
    places = [write_as_before(table, f"broken-{number}", label, f"{number}a", f"{number}b") for number in range(2)]
    opened = ResultsTable.open(table.uri)
    for broken in (lambda: status(opened), lambda: opened.pick_model(None), lambda: vacuum(opened, 0)):
        with pytest.raises(ResultsError, match=r"deeplab (verify|repair)") as caught:
            broken()
        assert len(str(caught.value).splitlines()) == 1
    problems = verification.verify(opened).problems
    assert {problem.partition(": ")[2] for problem in problems} == {
        f"is missing, its 2 rows lie at {place.relative_to(tmp_path / 'results')}; `deeplab repair` corrects the log"
        for place in places
    }
    done = repair.repair(opened)
    assert (done.restored, done.rows, done.left) == (2, 4, [])
    after = ResultsTable.open(table.uri)
    assert verification.verify(after).problems == []
    assert sorted(uri for (uri,) in after.query("SELECT uri FROM results WHERE model = ?", [label]).fetchall()) == [
        "file:///0a", "file:///0b", "file:///1a", "file:///1b"
    ]  # fmt: skip
    assert all(place.is_file() for place in places)
    assert (repair.repair(after).restored, after.version) == (0, opened.version)  # a second time there is nothing to do
    assert len(ResultsTable.open(table.uri).files(sound)) == 1


@pytest.mark.parametrize("name", ["a#b", "a?b"])
def test_rows_that_one_file_took_from_another_are_named_and_can_be_taken_out(tmp_path: Path, name: str) -> None:
    label = f"{name}@0123456789ab"
    table = ResultsTable.ensure(str(tmp_path / "results"))
    table.register(label, CARD)
    first = write_as_before(table, "chunk-1", label, "lost")
    assert write_as_before(table, "chunk-2", label, "x", "y") == first  # written over the first
    opened = ResultsTable.open(table.uri)
    assert sorted(" lie at " in problem for problem in verification.verify(opened).problems) == [False, True]
    done = repair.repair(opened)
    assert (done.restored, done.rows, [entry.rows for entry in done.left]) == (1, 2, [1])
    assert "deeplab repair --forget" in verification.verify(ResultsTable.open(table.uri)).problems[0]
    assert repair.repair(ResultsTable.open(table.uri), forget=True).forgotten == 1
    after = ResultsTable.open(table.uri)
    assert verification.verify(after).problems == []
    assert sorted(after.query("SELECT uri FROM results").fetchall()) == [("file:///x",), ("file:///y",)]


def exported(tmp_path: Path, uris: list[str]) -> list[bytes]:
    """Files that an export of these images writes; fails where one lies outside the export's folder."""
    base = tmp_path / uuid.uuid4().hex
    label = "m@000000000000"
    table = ResultsTable.ensure(str(base / "table"))
    table.register(
        label, {"name": "m", "classes": [{"name": n, "colour": list(c)} for n, c in zip(*vars_of(CLASSES), strict=True)]}
    )
    made = [{**row("x"), "uri": uri} for uri in uris]
    put(table, "chunk-1", *made, model=label)
    before = listed(tmp_path)
    done = export.export(ResultsTable.open(table.uri), label, base / "a" / "b" / "out", "png")
    written = listed(tmp_path) - before - {str(base / "a"), str(base / "a" / "b"), str(base / "a" / "b" / "out")}
    assert all(path.startswith(f"{base}/a/b/out/") for path in written)
    files = [os.fsencode(path) for path in written if os.path.isfile(path) and os.path.basename(path) != MARKER]
    files.remove(os.fsencode(base / "a" / "b" / "out" / "classes.txt"))
    assert (done.images, done.files, len(files)) == (len(uris),) * 3
    return files


def vars_of(classes: object) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    return classes.names, classes.colours  # type: ignore[attr-defined]


@given(st.lists(anything, min_size=1, max_size=6, unique=True))
@quick
def test_an_export_writes_one_file_for_each_image_and_none_elsewhere(tmp_path: Path, names: list[str]) -> None:
    text = [re.sub("[\ud800-\udfff]", "_", name) for name in names]
    keys = [f"s3://bucket/photos/{name}.jpg" for name in text]
    local = [Path(f"/photos/{name.replace(chr(0), '')}.jpg").as_uri() for name in names]
    members = [f"s3://bucket/shard.tar#{name}.jpg" for name in text]
    for uris in (keys, local, members, [*keys, *local, *members]):
        exported(tmp_path, list(dict.fromkeys(uris)))


def test_names_that_are_paths_stay_as_they_are_and_the_rest_becomes_safe(tmp_path: Path) -> None:
    plain = exported(tmp_path, ["s3://b/p/x/one.two.jpg", "s3://b/p/y z/あ#.jpg", "s3://b/p/y z/あ#.png"])
    assert sorted(path.split(b"/out/")[1].decode() for path in plain) == ["x/one.two.png", "y z/あ#.png", "y z/あ#.png.png"]
    latin = exported(tmp_path, ["file:///p/caf%E9.jpg", "file:///p/th%C3%A9.jpg"])
    assert sorted(path.split(b"/out/")[1] for path in latin) == [b"caf\xe9.png", "thé.png".encode()]
    (escaped,) = exported(tmp_path, [f"s3://b/p/../../../../{'tmp' * 100}/{'x' * 300}.jpg"])
    assert all(len(part) <= 255 for part in escaped.split(b"/"))
    nested = exported(tmp_path, ["s3://b/p/a.jpg", "s3://b/p/a.png/b.jpg", "s3://b/p/a.png"])
    assert len(nested) == 3
    assert len(exported(tmp_path, ["s3://b/p/classes.txt/a.jpg", "s3://b/p/b.jpg"])) == 2


def test_bytes_that_are_no_utf8_are_read_listed_and_found(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    data = photo(1)
    with open(folder + b"/p\xff #%41.jpg", "wb") as file:
        file.write(data)
    with tarfile.open(folder + b"/s\xe8.tar", "w", encoding="latin-1") as tar:
        entry = tarfile.TarInfo("m\xe9 #.jpg")
        entry.size = len(data)
        tar.addfile(entry, BytesIO(data))
    inventory.take(os.fsdecode(folder), tmp_path / "inventory.parquet")
    entries = pq.read_table(tmp_path / "inventory.parquet").to_pylist()
    assert len(entries) == 2
    for found in entries:
        assert found["uri"].isascii()
        assert shards.fetch(found["uri"], found["version"])[0] == data
        assert filesystems.canonical(str(filesystems.local_path(found["uri"].partition("#")[0]))) == found["uri"].partition("#")[0]
    assert shards.join("s3://b/s.tar", "m\udce9 é.jpg") == "s3://b/s.tar#m%E9 é.jpg"


def test_the_page_is_searched_by_the_names_that_it_shows(tmp_path: Path) -> None:
    label = "m@000000000000"
    table = ResultsTable.ensure(str(tmp_path / "results"))
    table.register(label, CARD)
    uris = [Path(f"/photos/{name}.jpg").as_uri() for name in ("sp ace", "あ", "#1", "caf\udce9", "plain")]
    made = [{**row("x"), "uri": uri} for uri in [*uris, "s3://b/s p/い%20.jpg"]]
    put(table, "chunk-1", *made, model=label)
    with Snapshot(ResultsTable.open(table.uri), label) as found:
        for text, count in [("SP ACE", 1), ("あ", 1), ("#1", 1), ("い", 1), ("%20", 2), ("caf", 1), ("photos/", 5), ("none", 0)]:
            assert gallery.page(found, 0, 10, name=text)[0] == count, text
        names = [card["name"] for card in gallery.page(found, 0, 10)[1]]
    assert names[0] == "/photos/#1.jpg"
    assert "/photos/caf\\xe9.jpg" in names


def test_labels_of_metrics_are_ascii_and_still_tell_tables_apart() -> None:
    made = [prometheus.Metrics(f"s3://b/{name}", name).labels for name in NAMES]
    assert all(value.isascii() and value.isprintable() for labels in made for value in labels.values())
    assert len({labels["model"] for labels in made}) == len(NAMES)
    assert made[0]["results"] == "s3://b/my model"
    assert isinstance(prometheus.Metrics("s3://b/é", "é").pending, Gauge)


def test_stems_with_dots_survive_a_pack_and_a_table(tmp_path: Path, model: Path) -> None:
    data = make_dataset(tmp_path / "data", count=3)
    stems = {"picture_0": "2024.01.02", "picture_1": "a.b", "picture_2": "#ü 1.5"}
    for old, new in stems.items():
        for part in ("images", "labels"):
            (data / part / f"{old}.png").rename(data / part / f"{new}.png")
    for split, names in (("train", stems.values()), ("val", list(stems.values())[:2])):
        (data / f"{split}.txt").write_text("\n".join(names) + "\n")
    packed_datasets.pack([LabelledFolder(data, "train")], str(tmp_path / "packed"))
    label = "m@000000000000"
    table = ResultsTable.ensure(str(tmp_path / "results"))
    classes = LabelledFolder(data, "train").classes
    table.register(label, {"name": "m", "classes": [{"name": name, "colour": [k, 0, 0]} for k, name in enumerate(classes)]})
    labels = {path.stem: path.read_bytes() for path in (data / "labels").iterdir()}
    made = [
        {**row("x"), "uri": uri, "mask": labels[name]}
        for uri, name in [
            ("s3://elsewhere/a.b.jpg", "a.b"),
            ("s3://elsewhere/2024.01.02.jpg", "2024.01.02"),
            (Path("/elsewhere/#ü 1.5.jpg").as_uri(), "#ü 1.5"),
        ]
    ]
    put(table, "chunk-1", *made, model=label)
    options = EvaluateOptions(model=str(tmp_path / "results"), dataset=str(tmp_path / "packed"), split="train", device="cpu")
    found = evaluation.evaluate(options)
    assert (found["images"], found["without_mask"], found["mean_iou"]) == (3, 0, 1.0)


@pytest.mark.usefixtures("running_ray")
def test_a_model_an_archive_and_a_table_of_odd_names_go_the_whole_way(tmp_path: Path) -> None:
    model = make_model(tmp_path / "models" / "mon modèle %41#?", name="mon modèle %41#?")
    photos = os.fsencode(tmp_path / "photos #1 %20é")
    os.mkdir(photos)
    odd = [b"sp ace.jpg", b"caf\xe9.jpg", b"#1.jpg", b"a%41?.jpg", "あ.b.c.jpg".encode(), b"back\\slash.jpg", b"q'\".jpg"]
    for index, name in enumerate(odd):
        with open(photos + b"/" + name, "wb") as file:
            file.write(photo(index))
    place = tmp_path / "réśults #1 ?"
    before = listed(tmp_path)
    options = SegmentOptions(archive=os.fsdecode(photos), results=str(place), model=str(model), crf=False, commit_every=1)
    done = segment(options)
    assert (done.images, done.errors) == (len(odd), 0)
    assert segment(options).images == 0
    assert segment(options.model_copy(update={"retry_errors": True})).images == 0
    table = ResultsTable.open(str(place))
    label = table.pick_model("mon modèle %41#?")
    assert status(table, os.fsdecode(photos))["archive"]["pending"] == 0
    assert verification.verify(table, os.fsdecode(photos)).count == 0
    for form in ("png", "overlay", "coco-rle", "cvat", "label-studio", "huggingface"):
        written = export.export(table, label, tmp_path / "out" / form, form)
        assert written.images + written.left_out == len(odd)
        assert written.left_out == (1 if form == "cvat" else 0)  # XML has no way to write the byte
    pictures = {os.fsencode(path.name) for path in (tmp_path / "out" / "png").iterdir()} - {MARKER.encode(), b"classes.txt"}
    assert pictures == {name[:-4] + b".png" for name in odd}
    page = static_page.build(table, tmp_path / "out" / "report", label)
    assert "caf\\xe9.jpg" in page.page.read_text(encoding="utf-8").replace("\\\\", "\\")
    assert not page.gone
    show(table, label, tmp_path / "out" / "sheet.png", 3)
    outside = {path for path in listed(tmp_path) - before if not path.startswith((str(place), str(tmp_path / "out")))}
    assert outside == set()
    assert drop_model(table, label) == len(odd)
    assert ResultsTable.open(str(place)).dataset().to_table().num_rows == 0


def test_keys_of_any_name_are_listed_read_and_exported_from_a_table_of_any_name(s3: str, tmp_path: Path) -> None:
    from pipelines.storage import s3 as store

    label = "mödel 1@000000000000"
    names = ["sp ace.jpg", "é/あ.jpg", "a#b?.jpg", "x%41.jpg", "a+b&c.jpg", "[1]^|.jpg"]
    for index, name in enumerate(names):
        store.put(f"{s3}/photos é/{name}", photo(index))
    inventory.take(f"{s3}/photos é", tmp_path / "inventory.parquet")
    entries = pq.read_table(tmp_path / "inventory.parquet").to_pylist()
    assert {shards.fetch(entry["uri"], entry["version"])[0] for entry in entries} == {photo(index) for index in range(len(names))}
    table = ResultsTable.ensure(f"{s3}/résults 1/あ")
    table.register(label, CARD)
    made = [{**row("x"), "uri": entry["uri"], "version": entry["version"]} for entry in entries]
    put(table, "chunk-1", *made, model=label)
    opened = ResultsTable.open(table.uri)
    assert verification.verify(opened, f"{s3}/photos é", label).pending == 0
    assert export.export(opened, label, tmp_path / "out", "png").files == len(names)
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    assert found == {f"{name[:-4]}.png" for name in names}
