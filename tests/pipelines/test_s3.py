"""S3 by a real server: versions are ETags, whole objects or none, commits by conditional PUT, errors that tell."""

from __future__ import annotations

import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import inventory, storage
from pipelines import s3 as store
from pipelines.results import ResultsError, ResultsTable
from pipelines.s3 import StorageError
from tests import s3_server


def taken(archive: str, tmp_path: Path) -> dict[str, str]:
    inventory.take(archive, tmp_path / "inventory.parquet")
    table = pq.read_table(tmp_path / "inventory.parquet")
    return dict(zip(table["uri"].to_pylist(), table["version"].to_pylist(), strict=True))


def test_an_inventory_names_objects_with_their_etags(s3_archive: str, tmp_path: Path) -> None:
    found = taken(s3_archive, tmp_path)
    assert len(found) == 13
    uri = f"{s3_archive}/a/photo 00.jpg"
    assert found[uri] == hashlib.md5(store.get(uri)[0]).hexdigest()  # what an ETag of a single PUT is


def test_many_folders_are_listed_side_by_side_and_completely(s3: str) -> None:
    names = {f"{s3}/{folder}/{sub}/{index}" for folder in range(3) for sub in range(9) for index in range(4)}
    names |= {f"{s3}/{index}" for index in range(3)}
    for name in [*names, f"{s3}/.hidden/x", f"{s3}/1/.x"]:
        store.put(name, b"x")
    assert sorted(uri for uri, _, _ in store.list_objects(s3)) == sorted(names)


def test_a_listing_can_be_left_in_the_middle(s3: str, tmp_path: Path) -> None:
    for index in range(40):
        store.put(f"{s3}/{index % 20}/{index}.jpg", b"x")
    assert inventory.take(s3, tmp_path / "i.parquet", limit=3).images == 3


def test_one_object_is_an_archive(s3_archive: str, tmp_path: Path) -> None:
    assert list(taken(f"{s3_archive}/a/photo 00.jpg", tmp_path)) == [f"{s3_archive}/a/photo 00.jpg"]


def test_an_empty_prefix_and_a_missing_bucket_are_said_so(s3: str, tmp_path: Path) -> None:
    with pytest.raises(inventory.ArchiveError, match="no images found"):
        inventory.take(f"{s3}/nothing", tmp_path / "i.parquet")
    with pytest.raises(StorageError, match="no such bucket"):
        inventory.take("s3://no-such-bucket-here/x", tmp_path / "i.parquet")


def test_wrong_credentials_fail_and_show_no_secret(s3_archive: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-value")
    store.client.cache_clear()
    with pytest.raises(StorageError) as caught:
        storage.read_versioned(f"{s3_archive}/a/photo 00.jpg")
    assert "SignatureDoesNotMatch" in str(caught.value) and "wrong-secret-value" not in str(caught.value)


def test_a_missing_object_is_a_missing_file_and_a_dead_store_is_not(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_versioned(f"{s3}/nothing.jpg")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(store, "TRIES", 2)
    store.client.cache_clear()
    with pytest.raises(StorageError, match="cannot be reached"):
        storage.read_versioned(f"{s3}/nothing.jpg")


def test_a_conditional_put_has_one_winner_and_knows_its_own_object(s3: str) -> None:
    assert store.put(f"{s3}/x", b"first", only_new=True)
    assert not store.put(f"{s3}/x", b"second", only_new=True)
    assert store.put(f"{s3}/x", b"first", only_new=True)  # the retry of a request whose answer was lost
    assert store.get(f"{s3}/x")[0] == b"first"


def test_a_store_without_conditional_put_is_refused(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "put", lambda uri, data, only_new=False: True)
    with pytest.raises(StorageError, match="ignores conditional PUT"):
        store.require_conditional_put(s3)


def test_a_run_outlasts_a_store_that_is_away_while_a_reader_says_so(s3: str, s3_process: s3_server.Server) -> None:
    table = ResultsTable.ensure(f"{s3}/results")
    s3_process.kill()
    try:
        with ThreadPoolExecutor(1) as pool:
            committing = pool.submit(table.commit, "chunk", [])
            with pytest.raises(ResultsError, match=r"cannot be read .*Connection refused"):
                ResultsTable.open(f"{s3}/results")
            time.sleep(3)
            assert not committing.done()
            s3_process.start()
            assert committing.result() == 1
    finally:
        if s3_process.process is None:
            s3_process.start()


def test_a_run_is_told_in_one_line_that_the_store_stays_away(
    s3: str, s3_process: s3_server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "OUTAGE_SECONDS", 0.0)
    table = ResultsTable.ensure(f"{s3}/results")
    s3_process.kill()
    try:
        for look in (table.refresh, lambda: table.commit("chunk", [], writing="model")):
            with pytest.raises(StorageError, match=r"results: the store cannot be reached or broke off \(.*Connection refused"):
                look()
    finally:
        s3_process.start()


def test_results_do_not_go_where_something_else_lies(s3_archive: str) -> None:
    with pytest.raises(ResultsError, match="holds something"):
        ResultsTable.ensure(s3_archive)


def test_an_inventory_on_s3_is_read_and_looked_up(s3_archive: str, tmp_path: Path) -> None:
    uris = [f"{s3_archive}/a/photo 00.jpg", f"{s3_archive}/gone.jpg"]
    pq.write_table(pa.table({"uri": uris}), tmp_path / "list.parquet")
    store.put(f"{s3_archive}/list.parquet", (tmp_path / "list.parquet").read_bytes())
    found = taken(f"{s3_archive}/list.parquet", tmp_path)
    assert found == {uris[0]: store.get(uris[0])[1], uris[1]: inventory.MISSING}


def test_a_public_bucket_is_read_without_credentials_and_not_written(
    s3_archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also as Parquet files and archives are opened, which goes another way than images."""
    bucket = store.split(s3_archive)[0]
    uri = f"{s3_archive}/a/photo 00.jpg"
    pq.write_table(pa.table({"uri": [uri]}), tmp_path / "list.parquet")
    store.put(f"{s3_archive}/list.parquet", (tmp_path / "list.parquet").read_bytes())
    owner, mine = store.client(), storage.read_versioned(uri)
    allowed = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"]}
    places = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    policy = {"Version": "2012-10-17", "Statement": [{**allowed, "Resource": places}]}
    owner.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    try:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        for cached in (store.client, store.signed, storage._s3_filesystem):
            cached.cache_clear()
        assert not store.signed()
        assert storage.read_versioned(uri) == mine
        assert len(taken(s3_archive, tmp_path)) == 13
        assert taken(f"{s3_archive}/list.parquet", tmp_path) == {uri: mine[1]}
        with pytest.raises(PermissionError, match="Access denied"):
            store.put(f"{s3_archive}/new.jpg", b"x")
    finally:
        owner.delete_bucket_policy(Bucket=bucket)


def test_an_outage_is_outlasted_for_a_while_and_a_missing_object_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def store_down_for(count: int, error: OSError) -> str:
        tries.append(error)
        if len(tries) <= count:
            raise error
        return "there again"

    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    assert storage.outlast(lambda: store_down_for(5, StorageError("down"))) == "there again"
    assert len(tries) == 6
    for error in (FileNotFoundError(2, "No such object"), OSError(28, "No space left on device")):
        tries.clear()
        with pytest.raises(type(error)):
            storage.outlast(lambda error=error: store_down_for(1, error))
        assert len(tries) == 1
    monkeypatch.setattr(storage, "OUTAGE_SECONDS", -1.0)
    tries.clear()
    with pytest.raises(StorageError, match="down"):
        storage.outlast(lambda: store_down_for(1, StorageError("down")))
