"""The files of infra/, each against the schema or the tool of those who will read it; and that each check can fail."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hcl2
import jsonschema
import promql_parser
import pytest
import yaml

from tests.infra.schemas import kuberay
from tests.nightly.image_build import base_name

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
BIN = Path(sys.executable).parent
MANIFESTS = sorted((INFRA / "kuberay").glob("*.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, check=False)


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod specs of a resource, wherever they are."""
    spec = document.get("spec", {})
    spec = spec.get("rayClusterSpec", spec)
    if "headGroupSpec" in spec:
        return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    return [spec["template"]["spec"]] if "template" in spec else []


# The image


def test_the_dockerfile_has_no_warning(tmp_path: Path) -> None:
    done = run(BIN / "hadolint", "--failure-threshold", "warning", INFRA / "Dockerfile")
    assert done.returncode == 0, done.stdout
    bad = tmp_path / "Dockerfile"
    bad.write_text((INFRA / "Dockerfile").read_text().replace("USER 1000", "USER root"))
    assert run(BIN / "hadolint", "--failure-threshold", "warning", bad).returncode == 1


def test_the_image_takes_what_it_needs_and_nothing_private() -> None:
    taken = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert taken >= {"deeplab", "pipelines", "flows", "pyproject.toml", "constraints.txt", "CMakeLists.txt", "infra/prefect.yaml"}
    assert all((ROOT / name).exists() for name in taken)
    text = (INFRA / "Dockerfile").read_text()
    assert "HEALTHCHECK" in text
    pinned = (ROOT / "constraints.txt").read_text()
    assert re.search(r"^torch==", pinned, re.M)


def test_all_stages_of_the_image_begin_from_one_base_that_is_named_by_version() -> None:
    assert re.fullmatch(r"python:3\.\d+-slim-bookworm", base_name((INFRA / "Dockerfile").read_text()))


def test_a_volume_of_the_image_lies_on_a_folder_that_its_user_owns() -> None:
    """A new volume gets the owner of the folder below it; where there is none, it is root's, and nothing can be written."""
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    ours = [service for service in services.values() if service["image"].startswith("deeplab:")]
    places = [volume.split(":")[1] for service in ours for volume in service.get("volumes", [])]
    owned = re.findall(r"install -d -o 1000 -g 1000 (\S+)", (INFRA / "Dockerfile").read_text())
    assert places and set(places) <= set(owned)


# One machine


def compose_check(path: Path) -> subprocess.CompletedProcess[str]:
    return run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)


def test_the_compose_file_is_one(tmp_path: Path) -> None:
    done = compose_check(INFRA / "compose.yaml")
    assert done.returncode == 0, done.stdout
    (tmp_path / "compose.yaml").write_text(
        (INFRA / "compose.yaml").read_text().replace("    restart: unless-stopped", "    restrat: always", 1)
    )
    assert compose_check(tmp_path / "compose.yaml").returncode == 1


def test_compose_publishes_on_loopback_alone_and_asks_for_every_secret() -> None:
    text = (INFRA / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published and all(str(port).startswith("127.0.0.1:") for port in published)
    asked = set(re.findall(r"\$\{(\w+)", text))
    example = dict(
        line.split("=", 1) for line in (INFRA / ".env.example").read_text().splitlines() if "=" in line and line[0] != "#"
    )
    assert asked - {"DEEPLAB_TAG"} == set(example)
    for secret in ("POSTGRES_PASSWORD", "RAY_AUTH_TOKEN", "S3_ACCESS_KEY", "S3_SECRET_KEY"):
        assert example[secret] == "" and f"${{{secret}:?" in text
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in services
            assert how["condition"] != "service_healthy" or "healthcheck" in services[needed], name


def test_compose_runs_commands_that_exist() -> None:
    from typer.testing import CliRunner

    from flows.cli import app

    for service in yaml.safe_load((INFRA / "compose.yaml").read_text())["services"].values():
        command = service.get("command", [])
        if command[:1] == ["deeplab"]:
            page = CliRunner().invoke(app, [command[1], "--help"], env={"COLUMNS": "200"})
            assert page.exit_code == 0
            for option in (part for part in command[2:] if part.startswith("--")):
                assert option in page.output


# Kubernetes


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_have_no_field_that_kubernetes_does_not_know(path: Path, tmp_path: Path) -> None:
    for number, document in enumerate(documents(path)):
        kind = document["kind"]
        if kind in kuberay():
            jsonschema.validate(document, kuberay()[kind])
            wrong = copy.deepcopy(document)
            pods(wrong)[0]["containers"][0]["imagee"] = "x"
            with pytest.raises(jsonschema.ValidationError, match="imagee"):
                jsonschema.validate(wrong, kuberay()[kind])
            continue
        for change, code in ((None, 0), ("bogus", 1)):
            told = {**document, **({change: 1} if change else {})}
            (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump(told))
            done = run(BIN / "kubernetes-validate", "--strict", tmp_path / f"{number}.yaml")
            assert (done.returncode != 0) == bool(code), done.stdout + done.stderr


def test_pods_are_unprivileged_limited_and_take_secrets_by_reference() -> None:
    seen = 0
    for path in MANIFESTS:
        for document in documents(path):
            for pod in pods(document):
                seen += 1
                assert pod["securityContext"]["runAsNonRoot"] and pod["serviceAccountName"] == "deeplab"
                (container,) = pod["containers"]
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert (
                    container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
                    or "runner" in path.read_text()
                )
                for variable in container.get("env", []):
                    secret = re.search("TOKEN|KEY|PASSWORD|URL", variable["name"])
                    assert not secret or "secretKeyRef" in variable["valueFrom"], variable["name"]
    assert seen == 6


def test_worker_groups_grow_from_nothing_on_spot_machines_with_the_ray_that_is_installed() -> None:
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned
    for path in MANIFESTS:
        for document in documents(path):
            spec = document.get("spec", {}).get("rayClusterSpec", document.get("spec", {}))
            if "workerGroupSpecs" not in spec:
                continue
            assert spec["rayVersion"] == pinned[1] and spec["enableInTreeAutoscaling"]
            for group in spec["workerGroupSpecs"]:
                assert group["minReplicas"] == 0 < group["maxReplicas"]
                assert any(each.get("key") == "deeplab/spot" for each in group["template"]["spec"]["tolerations"])


def test_the_entrypoint_of_the_job_is_a_command_of_ours() -> None:
    import shlex

    from typer.testing import CliRunner

    from flows.cli import app

    (job,) = documents(INFRA / "kuberay" / "job.yaml")
    program, command, *rest = shlex.split(job["spec"]["entrypoint"])
    page = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert program == "deeplab" and all(part in page.output for part in rest if part.startswith("--"))


# AWS


def terraform() -> dict[str, Any]:
    with (INFRA / "terraform" / "main.tf").open() as stream:
        found: dict[str, Any] = hcl2.load(stream)
    return found


def bare(value: Any) -> Any:
    """hcl2 keeps the quotes of strings."""
    if isinstance(value, str):
        return value.strip('"')
    if isinstance(value, list):
        return [bare(each) for each in value]
    return {bare(key): bare(each) for key, each in value.items()} if isinstance(value, dict) else value


def test_the_policy_names_its_actions_and_its_bucket() -> None:
    statements = [
        statement
        for block in bare(terraform()["data"])
        for document in block.get("aws_iam_policy_document", {}).get("work", {}).get("statement", [])
        for statement in [document]
    ]
    assert len(statements) == 4
    for statement in statements:
        assert all(re.fullmatch(r"s3:[A-Za-z]+", action) for action in statement["actions"])
        assert all("aws_s3_bucket.data.arn" in place for place in statement["resources"])
    archive = [s for s in statements if any("archive" in place for place in s["resources"])]
    assert [s["actions"] for s in archive] == [["s3:GetObject"]]


def test_the_bucket_is_private_versioned_and_cleans_up() -> None:
    resources: dict[str, Any] = {}
    for block in bare(terraform()["resource"]):
        for kind, named in block.items():
            resources[kind] = next(value for key, value in named.items() if not key.startswith("__"))
    block = resources["aws_s3_bucket_public_access_block"]
    assert all(
        block[name] is True
        for name in ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")
    )
    assert "Enabled" in str(resources["aws_s3_bucket_versioning"])
    assert "abort_incomplete_multipart_upload" in str(resources["aws_s3_bucket_lifecycle_configuration"])


def test_terraform_itself_finds_nothing_wrong(tmp_path: Path) -> None:
    program = shutil.which("terraform") or shutil.which("tofu")
    if program is None:
        pytest.skip("no terraform on the PATH; the files are parsed and their policies checked without it")
    shutil.copytree(INFRA / "terraform", tmp_path / "tf")
    if run(program, f"-chdir={tmp_path / 'tf'}", "init", "-backend=false").returncode:
        pytest.skip("terraform could not fetch its AWS provider: a network is needed")
    done = run(program, f"-chdir={tmp_path / 'tf'}", "validate")
    assert done.returncode == 0, done.stdout + done.stderr


# Prometheus


def expressions() -> dict[str, str]:
    """Every PromQL expression of the dashboard and the alerts, by where it stands; variables of Grafana filled in."""
    board = json.loads((INFRA / "grafana" / "dashboard.json").read_text())
    found = {
        f"panel {p['title']}": t["expr"].replace("$results", ".*").replace("$model", ".*")
        for p in board["panels"]
        for t in p["targets"]
    }
    rules = yaml.safe_load((INFRA / "grafana" / "alerts.yaml").read_text())["groups"]
    return found | {f"alert {rule['alert']}": rule["expr"] for group in rules for rule in group["rules"]}


@pytest.mark.parametrize(("where", "expression"), expressions().items(), ids=expressions())
def test_every_query_is_promql(where: str, expression: str) -> None:
    promql_parser.parse(expression)
    with pytest.raises(ValueError, match=r".+"):
        promql_parser.parse(expression + " by (")


def test_alerts_are_rules_that_prometheus_takes() -> None:
    for group in yaml.safe_load((INFRA / "grafana" / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            assert set(rule) == {"alert", "expr", "for", "labels", "annotations"} and {"summary", "action"} == set(
                rule["annotations"]
            )
    if program := shutil.which("promtool"):
        assert run(program, "check", "rules", INFRA / "grafana" / "alerts.yaml").returncode == 0
