"""Random faults for a set time while one archive is segmented again and again; then the table must be correct.

    python benchmarks/chaos.py [--minutes 5] [--images 400] [--store s3|disk] [--seed 1]

A Ray cluster of three nodes (the head without CPUs), an S3 server behind a proxy, the real command with --address. Every few
seconds one of these happens: a worker, a node or the driver is killed with -9; the S3 server is killed and restarted; a tenth
of its answers is 503 or lost, or all are late; photos are added, changed or deleted. A driver that ended, for whatever
reason, is started again. At the end all faults stop, one last run finishes the work, and `deeplab verify` compares table and
archive: exit code 0 only if it finds nothing. Rows per (image, version) are counted independently, from the Parquet files.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.serving.cleanup import marked
from tests import s3_server
from tests.material import make_model, photo
from tests.s3_proxy import Faults, Proxy

ROOT = Path(__file__).resolve().parents[1]
MARKER = "DEEPLAB_CHAOS"
NODE = {"num_cpus": 1, "object_store_memory": 200 << 20}


class Chaos:
    """The parts of the system, and what can happen to them."""

    def __init__(self, folder: Path, on_s3: bool, images: int, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.happened: Counter[str] = Counter()
        self.exits: Counter[str] = Counter()
        self.names = [f"{'abcd'[index % 4]}/photo_{index:05d}.jpg" for index in range(images)]
        self.model = make_model(folder / "tiny")
        self.faults, self.server, self.proxy = Faults(), None, None
        if on_s3:
            (folder / "s3").mkdir()
            self.server = s3_server.Server(folder / "s3")
            self.server.start()
            self.proxy = Proxy(self.server.environment["AWS_ENDPOINT_URL"], self.faults)
            self.proxy.start()
            os.environ.update(self.server.environment)
            self.direct, self.place = os.environ["AWS_ENDPOINT_URL"], f"s3://{s3_server.BUCKET}"
        else:
            self.place = str(folder)
        os.environ |= {MARKER: str(folder), "RAY_worker_niceness": "0"}
        for index, name in enumerate(self.names):
            self.write(name, photo(index))
        self.write("broken.jpg", photo(0)[:300])
        from ray.cluster_utils import Cluster

        # Nodes inherit the environment, so their processes reach the store through the proxy.
        if self.proxy is not None:
            os.environ["AWS_ENDPOINT_URL"] = self.proxy.url
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 200 << 20, "include_dashboard": False}
        )
        self.nodes = [self.cluster.add_node(**NODE) for _ in range(2)]
        self.driver: subprocess.Popen[str] | None = None

    def write(self, name: str, data: bytes) -> None:
        if self.server is not None:
            import boto3

            store = boto3.client("s3", endpoint_url=self.direct, region_name="us-east-1")
            store.put_object(Bucket=s3_server.BUCKET, Key=f"photos/{name}", Body=data)
        else:
            path = self.folder / "photos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".new").write_bytes(data)
            path.with_suffix(".new").replace(path)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "flows.cli", *arguments]

    def start(self) -> None:
        """Start a driver if none is running."""
        if self.driver is not None:
            code = self.driver.poll()
            if code is None:
                return
            self.exits[str(code)] += 1
            if code not in (0, -signal.SIGKILL):
                print(f"  driver ended with {code}: {self.driver.communicate()[1].strip().splitlines()[-1:]}")
        arguments = ["--model", str(self.model), "--no-crf", "--commit-every", "3", "--address", self.cluster.address, "--json"]
        self.driver = subprocess.Popen(
            self.command("segment", f"{self.place}/photos", f"{self.place}/results", *arguments),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
        )  # fmt: skip

    def kill_driver(self) -> None:
        if self.driver is not None and self.driver.poll() is None:
            os.killpg(self.driver.pid, signal.SIGKILL)
            self.driver.wait()

    def kill_worker(self) -> None:
        workers = []
        for pid in marked(f"{MARKER}={self.folder}"):
            with suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
                    workers.append(pid)
        if workers:
            with suppress(ProcessLookupError):
                os.kill(self.random.choice(workers), signal.SIGKILL)

    def kill_node(self) -> None:
        victim = self.nodes.pop(self.random.randrange(len(self.nodes)))
        self.cluster.remove_node(victim, allow_graceful=False)
        time.sleep(self.random.uniform(0, 5))
        self.nodes.append(self.cluster.add_node(**NODE))

    def kill_store(self) -> None:
        if self.server is not None:
            self.server.kill()
            time.sleep(self.random.uniform(1, 8))
            self.server.start()

    def trouble_store(self) -> None:
        if self.proxy is not None:
            kind = self.random.choice(["refused", "lost", "delay"])
            setattr(self.faults, kind, 0.1)
            time.sleep(self.random.uniform(3, 8))
            setattr(self.faults, kind, 0.0)

    def change_archive(self) -> None:
        for _ in range(10):
            if self.server is None or self.server.process is not None:
                self.write(self.random.choice(self.names), photo(self.random.randrange(10**6)))

    def happen(self) -> None:
        faults = [self.kill_worker, self.kill_worker, self.kill_driver, self.kill_node, self.change_archive]
        faults += [self.kill_store, self.trouble_store] if self.server is not None else []
        fault = self.random.choice(faults)
        self.happened[fault.__name__.replace("_", " ")] += 1
        fault()

    def finish(self) -> int:
        """Without faults: one run to the end, verify, and an independent count of rows. Returns an exit code."""
        while self.driver is not None and self.driver.poll() is None:
            time.sleep(0.5)
        self.start()
        assert self.driver is not None
        out, err = self.driver.communicate(timeout=1800)
        reason = err.strip()[-300:] if self.driver.returncode else ""
        print(f"last run: exit code {self.driver.returncode} {out.strip()[:300]} {reason}")
        arguments = ("verify", f"{self.place}/results", "--archive", f"{self.place}/photos", "--json")
        verified = subprocess.run(self.command(*arguments), capture_output=True, text=True, cwd=ROOT, check=False)
        print(f"verify: exit code {verified.returncode} {verified.stdout.strip()[:500]} {verified.stderr.strip()[-500:]}")
        from pipelines.table.results_table import ResultsTable

        query = "SELECT count(*), count(DISTINCT (uri, version)), count(DISTINCT uri) FROM results"
        rows, pairs, uris = ResultsTable.open(f"{self.place}/results").query(query).fetchone() or (0, 0, 0)
        print(f"rows {rows}, of (image, version) {pairs}, of images {uris} (archive: {len(self.names) + 1})")
        clean = verified.returncode == 0 and rows == pairs and uris == len(self.names) + 1
        return 0 if clean and self.driver.returncode == 0 else 1

    def stop(self) -> None:
        self.kill_driver()
        self.cluster.shutdown()
        if self.proxy is not None and self.server is not None:
            self.proxy.stop()
            self.server.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--store", choices=["s3", "disk"], default="s3")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=8, help="mean seconds between faults")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        chaos: Any = Chaos(Path(folder), arguments.store == "s3", arguments.images, arguments.seed)
        try:
            end = time.monotonic() + 60 * arguments.minutes
            while time.monotonic() < end:
                chaos.start()
                time.sleep(chaos.random.expovariate(1 / arguments.every))
                chaos.happen()
            print("faults: " + ", ".join(f"{count} x {fault}" for fault, count in sorted(chaos.happened.items())))
            print("drivers ended with: " + ", ".join(f"{code} ({count} x)" for code, count in sorted(chaos.exits.items())))
            return int(chaos.finish())
        finally:
            chaos.stop()


if __name__ == "__main__":
    sys.exit(main())
