"""`deeplab doctor`: findings about a real machine, store, cluster and server, and about ones that are not there."""

from __future__ import annotations

import json
import shutil
import sys
from collections import namedtuple
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from pipelines.doctor import machine, services
from pipelines.doctor.finding import Finding, findings
from tests.command_line import deeplab
from tests.material import photo

SECRET = "do-not-show-this-key"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(photo(1))
    return tmp_path / "photos"


def asked(*arguments: object) -> tuple[int, dict[str, dict[str, Any]]]:
    done = deeplab("doctor", *arguments, "--json")
    assert SECRET not in done.stdout + done.stderr
    return done.returncode, {finding["name"]: finding for finding in json.loads(done.stdout)}


def test_a_machine_on_which_all_works_has_no_failed_finding(running_ray: None, photos: Path, s3: str) -> None:
    code, seen = asked(photos, f"{s3}/results")
    assert code == 0
    assert set(seen) >= {"Python", "packages", "torch", "processor", "GPU", "CRF engine", "cores, memory", "temporary files", "Ray"}
    assert {seen[name]["state"] for name in ("Python", "torch", "CRF engine", "Ray", "archive", "results")} == {"ok"}
    assert "conditional PUT" in seen["results"]["value"]


def test_what_cannot_be_reached_fails_with_a_remedy_and_without_secrets(
    running_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@127.0.0.1:9")
    with temporary_settings({PREFECT_API_URL: f"http://user:{SECRET}@127.0.0.1:9/api"}):
        code, seen = asked("nowhere", "s3://bucket/results", "--address", "http://127.0.0.1:9")
    assert code == 1
    failed = {name: finding for name, finding in seen.items() if finding["state"] == "failed"}
    assert set(failed) == {"archive", "results", "Ray cluster", "Prefect server"}
    assert all(finding["meaning"] and finding["remedy"] for finding in failed.values())
    assert "no such folder" in failed["archive"]["value"]
    assert "AWS_ENDPOINT_URL" in failed["results"]["value"]
    page = deeplab("doctor", "nowhere")
    assert page.returncode == 1 and "1 failed" in page.stdout and "-> " in page.stdout


def test_what_is_missing_on_a_machine_is_a_finding_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> None:
        raise ImportError(f"lib{name}.so.1: cannot open shared object file")

    monkeypatch.setattr(machine, "import_module", gone)
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(1 << 30, 1 << 30, 1 << 20))
    monkeypatch.setattr(machine, "_cgroup_limit", lambda: 1 << 30)
    seen = {finding.name: finding for finding in findings(machine.CHECKS)}
    assert {name for name, finding in seen.items() if finding.state == "failed"} == {
        "Python", "torch", "CRF engine", "cores, memory",
    }  # fmt: skip
    assert {name for name, finding in seen.items() if finding.state == "note"} == {"/dev/shm", "temporary files"}
    assert all(finding.remedy for finding in seen.values() if finding.state != "ok")


def test_an_old_and_a_missing_package_are_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "duckdb":
            raise metadata.PackageNotFoundError(name)
        return "0.151.0" if name == "fastapi" else real(name)

    real = metadata.version
    monkeypatch.setattr(metadata, "version", version)
    (finding,) = machine.packages()
    assert finding.state == "failed" and finding.value == "duckdb missing, fastapi 0.151.0"
    assert finding.remedy.startswith("pip install 'duckdb>=") and "'fastapi<0.151" in finding.remedy


def test_a_check_that_breaks_leaves_the_others_their_turn() -> None:
    def broken() -> Iterator[Finding]:
        raise KeyError("nobody foresaw this")
        yield

    first, second = findings({"first": broken, "second": machine.python})
    assert (first.name, first.state, second.name) == ("first", "failed", "Python")
    assert "nobody foresaw this" in first.value


def test_a_processor_without_bfloat16_is_worth_a_note() -> None:
    assert machine._instructions(["AVX2", "AVX-512", "VNNI"], "x86_64").state == "note"
    assert machine._instructions(["AVX2", "AMX"], "x86_64").state == "ok"


def test_a_place_that_refuses_writes_is_said(tmp_path: Path) -> None:
    (finding,) = services.results("/proc/nothing/results")
    assert finding.state == "failed" and finding.remedy
