"""What one option promises, the others keep: refusals come before the work, and only what may pass is tried again."""

from __future__ import annotations

import pytest
from prefect.states import Failed

from deeplab.errors import UserError
from flows.segment import transient
from pipelines import s3 as store
from pipelines import storage
from pipelines.inventory import ArchiveError
from pipelines.results import ResultsTable
from pipelines.segment import SegmentError


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
