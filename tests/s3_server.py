"""A real S3 server (SeaweedFS) as a process on loopback, to be stopped, killed and started again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import boto3
import pytest

from tests.processes import free_ports

BUCKET = "archive"
KEY, SECRET = "test-key", "test-secret-never-to-be-printed"


def weed() -> str | None:
    """The server's program: beside the interpreter, or on the PATH."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.is_file() else shutil.which("weed")


def fresh_clients() -> None:
    """Forget clients of earlier variables: the next call makes its own by those of now."""
    from pipelines.storage import filesystems, s3

    for cached in (s3.client, s3.signed, filesystems._s3_filesystem):
        cached.cache_clear()


class External:
    """A store that runs already (`DEEPLAB_TEST_S3=http://host:port`, credentials in AWS_*), for its dialect; it is not killed."""

    def __init__(self, endpoint: str) -> None:
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
        given = {name: os.environ[name] for name in names if name in os.environ}
        self.environment = {
            "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true", **given, "AWS_ENDPOINT_URL": endpoint,
        }  # fmt: skip

    def start(self) -> None:
        """Make the bucket."""
        client = boto3.client(
            "s3", endpoint_url=self.environment["AWS_ENDPOINT_URL"], region_name=self.environment["AWS_REGION"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip
        with suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=BUCKET)

    def kill(self) -> None:
        pytest.skip("a store that is not ours is not killed")


class Server:
    """`start` and `kill` may follow each other; the data folder and the port stay."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = free_ports(10)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.ports[0]}",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        program = weed()
        assert program is not None
        names = ["s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc"]
        names += ["filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc"]
        ports = [f"-{name}={port}" for name, port in zip(names, self.ports, strict=True)]
        fixed = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false"]
        fixed += ["-admin.ui=false", "-master.telemetry=false", "-master.volumeSizeLimitMB=64"]
        with open(self.folder.with_suffix(".log"), "ab") as log:
            self.process = subprocess.Popen(
                [program, "-logtostderr=true", "mini", f"-dir={self.folder}", *fixed, *ports],
                env={**os.environ, **self.environment, "S3_BUCKET": BUCKET},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(self.environment["AWS_ENDPOINT_URL"], timeout=2)
            except urllib.error.HTTPError:
                return  # it answers: nobody is let in without a signature
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"the S3 server did not start: {self.folder.with_suffix('.log').read_text()[-2000:]}")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
