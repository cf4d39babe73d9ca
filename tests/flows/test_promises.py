"""What one option promises, the others keep: refusals come before the work, and only what may pass is tried again."""

from __future__ import annotations

import pytest
from prefect.states import Failed
from pydantic import BaseModel, ValidationError
from typer.testing import CliRunner

from deeplab.errors import UserError
from flows.cli import app
from flows.segment import transient
from pipelines import jobs, options, storage
from pipelines import s3 as store
from pipelines.inventory import ArchiveError
from pipelines.results import ResultsTable
from pipelines.segment import SegmentError

PLACES = {"archive": "a", "results": "r", "dataset": "d", "model": "m", "model_out": "o", "out": "o"}


@pytest.mark.parametrize(
    ("kind", "values", "at"),
    [
        (options.SegmentOptions, {"tile": 256, "overlap": 256}, "overlap"),
        (options.SegmentOptions, {"tile": 256, "overlap": 193}, "overlap"),
        (options.TrainOptions, {"workers": 2, "min_workers": 3}, "min_workers"),
        (options.TrainOptions, {"batch_size": 1, "accumulate": 2}, "workers"),
        (options.TrainOptions, {"workers": 4000}, "workers"),
        (options.TrainOptions, {"workers": 2, "device": "cpu", "batch_norm": "sync"}, "workers"),
        (options.TrainOptions, {"preset": "finetun"}, "preset"),
        (jobs.TrainOptions, {"split": "val"}, "val_split"),
        (jobs.TrainOptions, {"workers": 2, "min_workers": 3}, "min_workers"),
    ],
)
def test_options_that_do_not_go_together_are_refused_by_the_schema(
    kind: type[BaseModel], values: dict[str, object], at: str
) -> None:
    places = {name: place for name, place in PLACES.items() if name in kind.model_fields}
    with pytest.raises(ValidationError) as caught:
        kind(**places, **values)
    assert [problem["loc"] for problem in caught.value.errors()] == [(at,)]
    if kind is options.TrainOptions and "preset" in values:
        assert "nearest finetune; one of" in str(caught.value)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("segment a r --tile 256 --overlap 256 --scales big --crf-mode slow --limit 0", "overlap scales crf-mode limit"),
        ("run segment a r --tile 256 --overlap 256 --max-error-rate 2", "overlap max-error-rate"),
        ("train d o --steps 0 --min-workers 2 --batch-norm new --preset x", "steps min-workers batch-norm preset"),
        ("run train d o --split val --crop 3 --set tile=4", "val-split crop set"),
        ("evaluate m d --trimap wide --scales 9 --workers 0 --split ../x", "trimap scales workers split"),
        ("run evaluate m d --trimap 0 --crf-mode slow", "trimap crf-mode"),
        ("tune-crf m d --rounds 9 --images 0 --grid fine", "rounds images grid"),
        ("serve a r --set overlap=1025 --set model=pets --set limt=3", "set set"),
    ],
)
def test_every_bad_option_is_named_at_once_as_it_is_typed(command: str, flags: str) -> None:
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 2, done.output
    lines = [line for line in done.output.splitlines() if line.startswith("error: ")]
    assert sorted(line.split()[1].strip(":-") for line in lines) == sorted(flags.split())
    assert not isinstance(done.exception, ValidationError | TypeError)


def fresh_clients() -> None:
    for cached in (store.client, store.signed, storage._s3_filesystem):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("name", "value", "again"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", False),
        ("AWS_ACCESS_KEY_ID", "wrong", False),
        ("AWS_SECRET_ACCESS_KEY", None, False),
        ("AWS_REQUEST_CHECKSUM_CALCULATION", "nonsense", False),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", True),
    ],
)
def test_a_store_that_is_away_is_asked_again_and_one_that_refuses_is_not(
    s3: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, again: bool
) -> None:
    """Every way to a store says the same: ours, the Delta library's, and the flows that hear of it."""
    table = f"{s3}/table"
    ResultsTable.ensure(table)
    monkeypatch.setattr(store, "TRIES", 1)
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    fresh_clients()
    ways = [
        lambda: storage.read_versioned(f"{s3}/x"),
        lambda: storage.write_whole(f"{s3}/x", b"x"),
        lambda: list(store.list_objects(s3)),
        lambda: store.require_conditional_put(s3),
    ]
    if "CHECKSUM" not in name:  # botocore's own
        ways.append(lambda: ResultsTable.open(table))
    for way in ways:
        with pytest.raises(UserError) as caught:
            way()
        assert storage.passes(caught.value) is again, caught.value
        assert transient(None, None, Failed(data=caught.value)) is again


def test_a_missing_bucket_is_not_asked_for_again(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def listed() -> None:
        tries.append(1)
        list(store.list_objects("s3://no-such-bucket-here/photos"))

    with pytest.raises(store.StorageError, match="no such bucket"):
        storage.outlast(listed)
    assert len(tries) == 1


def test_an_error_about_an_outage_passes_and_a_chunk_that_met_a_refusal_does_not() -> None:
    listing = ArchiveError("s3://photos: cannot be listed")
    listing.__cause__ = store.Outage("s3://photos: away")
    assert storage.passes(listing)
    assert not storage.passes(ArchiveError("no such archive"))
    assert transient(None, None, Failed(data=SegmentError("chunk 1 of 2: no such bucket", passing=False))) is False
