"""S3 by a real server: versions are ETags, whole objects or none, commits by conditional PUT, errors that tell."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from threading import Barrier
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from pipelines.archive import inventory
from pipelines.archive.image_lists import MISSING, ArchiveError
from pipelines.storage import filesystems, storage_errors
from pipelines.storage import s3 as store
from pipelines.storage.model_registry import Registry
from pipelines.storage.storage_errors import StorageError
from pipelines.table import results_table
from pipelines.table.results_table import ResultsTable
from pipelines.table.table_errors import ResultsError
from tests import s3_server
from tests.material import listed_versions
from tests.s3_proxy import Faults, Proxy


def test_an_inventory_names_objects_with_their_etags(s3_archive: str, tmp_path: Path) -> None:
    found = listed_versions(s3_archive, tmp_path)
    assert len(found) == 13
    uri = f"{s3_archive}/a/photo 00.jpg"
    assert found[uri] == hashlib.md5(store.get(uri)[0]).hexdigest()  # what an ETag of a single PUT is


def test_many_folders_are_listed_side_by_side_and_completely(s3: str) -> None:
    names = {f"{s3}/{folder}/{sub}/{index}" for folder in range(3) for sub in range(9) for index in range(4)}
    names |= {f"{s3}/{index}" for index in range(3)}
    for name in [*names, f"{s3}/.hidden/x", f"{s3}/1/.x"]:
        store.put(name, b"x")
    assert sorted(uri for uri, _, _ in store.list_objects(s3)) == sorted(names)


def test_a_flat_prefix_is_listed_page_by_page_as_it_is_asked_for(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PAGE", 5)
    uris = {f"{s3}/{n:03d}.jpg" for n in range(31)}
    for uri in uris:
        store.put(uri, b"x")
    asked: list[str] = []
    store.client().meta.events.register("before-call.s3.ListObjectsV2", lambda **_: asked.append("page"))
    objects = store.list_objects(s3)
    next(objects)
    assert len(asked) == 1
    assert len({uri for uri, _, _ in objects}) == 30 and len(asked) == 7
    asked.clear()
    assert inventory.take(s3, tmp_path / "i.parquet", limit=3).images == 3 and len(asked) == 1
    assert {uri for uri, _, _ in store.list_objects(s3)} == uris


def test_more_folders_than_are_held_at_once_are_listed_completely(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PAGE", 7)
    monkeypatch.setattr(store, "FOLDERS_AT_ONCE", 10)
    uris = {f"{s3}/{n % 23:02d}/{n % 2}/{n:03d}.jpg" for n in range(60)}
    for uri in uris:
        store.put(uri, b"x")
    listed = [uri for uri, _, _ in store.list_objects(s3)]
    assert len(listed) == len(uris) and set(listed) == uris


def test_a_listing_can_be_left_in_the_middle(s3: str, tmp_path: Path) -> None:
    for index in range(40):
        store.put(f"{s3}/{index % 20}/{index}.jpg", b"x")
    assert inventory.take(s3, tmp_path / "i.parquet", limit=3).images == 3


def test_one_object_is_an_archive(s3_archive: str, tmp_path: Path) -> None:
    assert list(listed_versions(f"{s3_archive}/a/photo 00.jpg", tmp_path)) == [f"{s3_archive}/a/photo 00.jpg"]


def test_an_empty_prefix_and_a_missing_bucket_are_said_so(s3: str, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no images found"):
        inventory.take(f"{s3}/nothing", tmp_path / "i.parquet")
    with pytest.raises(StorageError, match="no such bucket"):
        inventory.take("s3://no-such-bucket-here/x", tmp_path / "i.parquet")


def test_wrong_credentials_fail_and_show_no_secret(s3_archive: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-value")
    s3_server.fresh_clients()
    with pytest.raises(StorageError) as caught:
        filesystems.read_versioned(f"{s3_archive}/a/photo 00.jpg")
    assert "SignatureDoesNotMatch" in str(caught.value) and "wrong-secret-value" not in str(caught.value)


def test_a_missing_object_is_a_missing_file_and_a_dead_store_is_not(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        filesystems.read_versioned(f"{s3}/nothing.jpg")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(store, "TRIES", 2)
    s3_server.fresh_clients()
    with pytest.raises(StorageError, match="cannot be reached"):
        filesystems.read_versioned(f"{s3}/nothing.jpg")


def test_a_conditional_put_has_one_winner_and_knows_its_own_object(s3: str) -> None:
    assert store.put(f"{s3}/x", b"first", only_new=True)
    assert not store.put(f"{s3}/x", b"second", only_new=True)
    assert store.put(f"{s3}/x", b"first", only_new=True)  # the retry of a request whose answer was lost
    assert store.get(f"{s3}/x")[0] == b"first"


def test_a_write_over_a_known_state_has_one_winner_and_knows_its_own_object(s3: str) -> None:
    store.put(f"{s3}/x", b"first")
    tag = store.get(f"{s3}/x")[1]
    assert store.put(f"{s3}/x", b"second", unchanged=tag)
    assert not store.put(f"{s3}/x", b"third", unchanged=tag)
    assert store.put(f"{s3}/x", b"second", unchanged=tag)
    assert not store.put(f"{s3}/nothing", b"third", unchanged=tag)
    assert store.get(f"{s3}/x")[0] == b"second"


@pytest.fixture
def own_process(s3_process: s3_server.Server | s3_server.External) -> s3_server.Server:
    if isinstance(s3_process, s3_server.External):
        pytest.skip("a store that is not ours has a dialect and a certificate of its own")
    return s3_process


def speak(change: Callable[[dict[str, str]], object]) -> None:
    """Let the real server act as a store of another dialect: `change` is done to the arguments of each PUT before it is signed."""
    store.client().meta.events.register("before-parameter-build.s3.PutObject", lambda params, **_: change(params))


def quotes_taken_literally(params: dict[str, str]) -> None:
    """As Ceph 16.2: a tag in quotes, as HTTP has it, matches no object, and one without does."""
    if tag := params.get("IfMatch"):
        params["IfMatch"] = '"0"' if tag.startswith('"') else f'"{tag}"'


@pytest.mark.usefixtures("own_process")
def test_a_store_that_takes_quotes_literally_replaces_what_nobody_changed(s3: str) -> None:
    speak(quotes_taken_literally)
    test_a_write_over_a_known_state_has_one_winner_and_knows_its_own_object(s3)
    store.require_conditional_put(s3, replacing=True)


@pytest.mark.parametrize("name", ["If-None-Match", "If-Match"])
def test_a_store_that_ignores_a_condition_is_refused(name: str, s3: str) -> None:
    speak(lambda params: params.pop(name.replace("-", ""), None))
    with pytest.raises(StorageError, match=rf"ignores conditional PUT \({name}\)"):
        store.require_conditional_put(s3, replacing=True)
    assert list(store.list_objects(s3)) == []


def test_a_store_without_conditional_replacing_keeps_tables_but_moves_no_alias(s3: str, model: Path) -> None:
    speak(lambda params: params.update(IfMatch='"0"') if "IfMatch" in params else None)
    store.require_conditional_put(s3)
    registry = Registry(s3)
    with pytest.raises(StorageError, match="does not support If-Match"):
        registry.move("production", registry.publish(str(model)), {}, None)
    assert registry.alias("production") is None


def test_other_stores_are_sent_no_newer_checksums_unless_asked_for(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def checksums() -> set[str]:
        sent: set[str] = set()
        s3_server.fresh_clients()
        store.client().meta.events.register("before-send.s3.PutObject", lambda request, **_: sent.update(request.headers))
        with suppress(StorageError):  # Ceph's answer over TLS when it is sent some
            store.put(f"{s3}/x", b"x")
        assert "X-Amz-Content-SHA256" in sent
        return {name for name in sent if "checksum" in name.lower() or "trailer" in name.lower()}

    monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION", raising=False)
    assert checksums() == set()
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    assert checksums()


def test_a_store_with_a_certificate_of_ones_own_needs_both_variables(
    s3: str, own_process: s3_server.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """boto3 reads one, the Delta library and pyarrow the other."""
    authority, certificate = certificates(tmp_path)
    proxy = Proxy(own_process.environment["AWS_ENDPOINT_URL"], Faults(), certificate)
    proxy.start()

    def ensure() -> str:
        """In a process of its own: while the Delta library looks for a table no other thread of Python runs."""
        code = "import sys; from pipelines.table.results_table import ResultsTable; print(ResultsTable.ensure(sys.argv[1]).version)"
        made = subprocess.run([sys.executable, "-c", code, f"{s3}/results"], capture_output=True, text=True, check=False)
        return made.stdout or made.stderr

    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setattr(store, "TRIES", 1)
        s3_server.fresh_clients()
        with pytest.raises(
            StorageError, match="is not trusted; for your own certificate authority, AWS_CA_BUNDLE and SSL_CERT_FILE"
        ):
            store.put(f"{s3}/x", b"x")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
        assert "ResultsError" in (said := ensure()) and "invalid peer certificate" in said.splitlines()[-1]
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        assert ensure() == "0\n"
    finally:
        proxy.stop()


def certificates(folder: Path) -> tuple[Path, Path]:
    """An authority's certificate, and a certificate of its for 127.0.0.1 with its key, as PEM files."""
    now, keys = datetime.now(UTC), [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("An authority", "A store")]
    made = []
    for name, key, is_authority in zip(names, keys, (True, False), strict=True):
        builder = x509.CertificateBuilder(names[0], name, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        address = x509.IPAddress(ip_address("127.0.0.1"))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        made.append(builder.sign(keys[0], hashes.SHA256()).public_bytes(Encoding.PEM))
    secret = keys[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "authority.pem").write_bytes(made[0])
    (folder / "store.pem").write_bytes(made[1] + secret)
    return folder / "authority.pem", folder / "store.pem"


def test_a_run_outlasts_a_store_that_is_away_while_a_reader_says_so(s3: str, s3_process: s3_server.Server) -> None:
    table = ResultsTable.ensure(f"{s3}/results")
    s3_process.kill()
    try:
        with ThreadPoolExecutor(1) as pool:
            committing = pool.submit(table.commit, "run", 1, [], model="model")
            with pytest.raises(storage_errors.Outage, match=r"cannot be reached .*Connection refused"):
                ResultsTable.open(f"{s3}/results")
            time.sleep(3)
            assert not committing.done()
            s3_process.start()
            committing.result()
        assert table.version == 1
    finally:
        if s3_process.process is None:
            s3_process.start()


def test_a_run_is_told_in_one_line_that_the_store_stays_away(
    s3: str, s3_process: s3_server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystems, "OUTAGE_SECONDS", 0.0)
    table = ResultsTable.ensure(f"{s3}/results")
    s3_process.kill()
    try:
        for look in (table.refresh, lambda: table.commit("run", 1, [], model="model")):
            with pytest.raises(
                StorageError, match=r"results: the store cannot be reached or closed the connection \(.*error sending request"
            ):
                look()
    finally:
        s3_process.start()


def test_results_do_not_go_where_something_else_lies(s3_archive: str) -> None:
    with pytest.raises(ResultsError, match="holds something"):
        ResultsTable.ensure(s3_archive)


def test_a_table_that_another_run_makes_at_the_same_moment_is_taken(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = store.list_objects

    def after_the_other(prefix: str) -> Iterator[tuple[str, int, str]]:
        monkeypatch.setattr(store, "list_objects", listing)
        ResultsTable.ensure(f"{s3}/results")
        return listing(prefix)

    monkeypatch.setattr(store, "list_objects", after_the_other)
    assert ResultsTable.ensure(f"{s3}/results").version == 0


def test_of_many_who_make_a_table_at_once_all_get_the_same(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All have seen that there is none before the first makes it."""
    create, together = results_table.DeltaTable.create, Barrier(4)

    def at_once(*arguments: Any, **options: Any) -> Any:
        together.wait(timeout=60)
        return create(*arguments, **options)

    monkeypatch.setattr(results_table.DeltaTable, "create", at_once)
    for place in range(5):
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(ResultsTable.ensure, 4 * [f"{s3}/{place}"]))
        assert [table.version for table in made] == [0] * 4


def test_a_probe_that_may_not_be_deleted_is_in_nobodys_way(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def barred(uri: str) -> None:
        raise PermissionError(13, "Access denied", uri)

    monkeypatch.setattr(store, "delete", barred)
    for _ in range(2):
        assert ResultsTable.ensure(f"{s3}/results").version == 0


def test_an_inventory_on_s3_is_read_and_looked_up(s3_archive: str, tmp_path: Path) -> None:
    uris = [f"{s3_archive}/a/photo 00.jpg", f"{s3_archive}/gone.jpg"]
    pq.write_table(pa.table({"uri": uris}), tmp_path / "list.parquet")
    store.put(f"{s3_archive}/list.parquet", (tmp_path / "list.parquet").read_bytes())
    found = listed_versions(f"{s3_archive}/list.parquet", tmp_path)
    assert found == {uris[0]: store.get(uris[0])[1], uris[1]: MISSING}


def test_a_public_bucket_is_read_without_credentials_and_not_written(
    s3_archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also as Parquet files and archives are opened, which goes another way than images."""
    bucket = store.split(s3_archive)[0]
    uri = f"{s3_archive}/a/photo 00.jpg"
    pq.write_table(pa.table({"uri": [uri]}), tmp_path / "list.parquet")
    store.put(f"{s3_archive}/list.parquet", (tmp_path / "list.parquet").read_bytes())
    owner, mine = store.client(), filesystems.read_versioned(uri)
    allowed = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"]}
    places = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    policy = {"Version": "2012-10-17", "Statement": [{**allowed, "Resource": places}]}
    owner.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    try:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        s3_server.fresh_clients()
        assert not store.signed()
        assert filesystems.read_versioned(uri) == mine
        assert len(listed_versions(s3_archive, tmp_path)) == 13
        assert listed_versions(f"{s3_archive}/list.parquet", tmp_path) == {uri: mine[1]}
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

    monkeypatch.setattr(filesystems.time, "sleep", lambda seconds: None)
    assert filesystems.outlast(lambda: store_down_for(5, storage_errors.Outage("down"))) == "there again"
    assert len(tries) == 6
    for error in (FileNotFoundError(2, "No such object"), OSError(28, "No space left on device"), StorageError("no bucket")):
        tries.clear()
        with pytest.raises(type(error)):
            filesystems.outlast(lambda error=error: store_down_for(1, error))
        assert len(tries) == 1
    monkeypatch.setattr(filesystems, "OUTAGE_SECONDS", -1.0)
    tries.clear()
    with pytest.raises(StorageError, match="down"):
        filesystems.outlast(lambda: store_down_for(1, storage_errors.Outage("down")))
