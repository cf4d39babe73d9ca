"""Listing an S3 prefix of very many keys (`python benchmarks/scale.py list`)."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from measure import apart

from pipelines.archive import inventory
from pipelines.storage import s3
from tests import s3_server

PER_FOLDER = 1000


def fill(server: s3_server.Server, folder: Path, prefix: str, count: int, flat: bool) -> None:
    """Make `count` keys below s3://archive/PREFIX, PER_FOLDER per folder or all in one (`flat`): the first are uploaded, the others
    are copies.

    At a thousand uploads a second at best, a million keys would take a quarter of an hour. So the server's own
    metadata dump of the first folder is loaded again under other names: each key has its own entry in the
    server's database, which a listing reads.
    """
    first = f"s3://{s3_server.BUCKET}/{prefix}/000000"
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: s3.put(f"{first}/image-{n:09d}.jpg", b"%09d" % n * 100), range(min(count, PER_FOLDER))))
    saved, copies = folder / "first.meta", folder / "copies.meta"
    place = f"/buckets/{s3_server.BUCKET}/{prefix}/000000"
    _shell(server, f"fs.meta.save -o={saved} {place}")
    records = [record for record in _records(saved.read_bytes()) if record[0] == place]
    assert len(records) == min(count, PER_FOLDER), f"{len(records)} entries in the dump"
    with open(copies, "wb") as out:
        for number in range(1, -(-count // PER_FOLDER)):
            there = place.encode() if flat else f"/buckets/{s3_server.BUCKET}/{prefix}/{number:06d}".encode()
            shift = number * PER_FOLDER if flat else 0  # names of as many digits, so that the entry's lengths stay true
            for _, entry in records[: count - number * PER_FOLDER]:
                named = re.sub(rb"(?<=image-)\d{9}", partial(_shifted, shift), entry)
                record = b"\x0a" + bytes([len(there)]) + there + named
                out.write(struct.pack(">I", len(record)) + record)
    if count > PER_FOLDER:
        _shell(server, f"fs.meta.load -v=false {copies}")


def _shifted(shift: int, number: re.Match[bytes]) -> bytes:
    return b"%09d" % (int(number[0]) + shift)


def _records(dump: bytes) -> list[tuple[str, bytes]]:
    """A dump is (length, protobuf of a folder's name in field 1 and the entry in field 2) over and over."""
    records, at = [], 0
    while at < len(dump):
        (length,) = struct.unpack_from(">I", dump, at)
        record = dump[at + 4 : at + 4 + length]
        name = record[1]
        assert record[0] == 0x0A and name < 128
        records.append((record[2 : 2 + name].decode(), record[2 + name :]))
        at += 4 + length
    return records


def _shell(server: s3_server.Server, line: str) -> str:
    """Output of a command in the server's shell. It returns before the last entries of a dump are loaded: hence the sleep."""
    ports = server.ports
    addresses = [f"-master=127.0.0.1:{ports[2]}.{ports[3]}", f"-filer=127.0.0.1:{ports[6]}.{ports[7]}"]
    done = subprocess.run(
        [str(s3_server.weed()), "shell", *addresses], input=line + "\nsleep 2\nexit\n", capture_output=True, text=True, check=False
    )
    if done.returncode or re.search("error", done.stdout + done.stderr, re.I):
        raise SystemExit(f"{line}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def take(uri: str, path: Path, limit: int | None = None) -> int:
    return inventory.take(uri, path, limit=limit).images


def run(folder: Path, count: int) -> None:
    (folder / "server").mkdir()
    server = s3_server.Server(folder / "server")
    os.environ.update(server.environment)
    server.start()
    try:
        for prefix, flat in (("photos", False), ("flat", True)):
            start = time.perf_counter()
            fill(server, folder, prefix, count, flat)
            print(f"filled {count} keys in {time.perf_counter() - start:.0f} s", flush=True)
            uri, path = f"s3://{s3_server.BUCKET}/{prefix}", folder / "inventory.parquet"
            cost = apart(take, uri, path)
            assert cost.result == count, f"{cost.result} keys listed"
            shape = "in one folder" if flat else f"{PER_FOLDER} a folder"
            size, rate = path.stat().st_size / 1e6, count / cost.seconds
            print(f"list          {count} keys, {shape}, into {size:.1f} MB of Parquet in {cost}, {rate:.0f} keys/s", flush=True)
            print(f"list          the first 3 of them in {apart(take, uri, path, 3)}", flush=True)
    finally:
        server.kill()
