"""The files around the code: workflows, hooks, forms and the citation are valid, and say what Makefile and pyproject.toml say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PYTHONS = ["3.11", "3.12", "3.13"]

SCHEMAS = {
    "vendor.github-workflows": WORKFLOWS,
    "custom.github-workflows-require-timeout": WORKFLOWS,
    "vendor.github-issue-forms": [path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"],
    "vendor.github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "vendor.dependabot": [GITHUB / "dependabot.yml"],
    "vendor.citation-file-format": [ROOT / "CITATION.cff"],
}


def valid(schema: str, *paths: Path) -> bool:
    return CliRunner().invoke(check_jsonschema, ["--builtin-schema", schema, *map(str, paths)]).exit_code == 0


def workflow(path: Path) -> dict[Any, Any]:
    document: dict[Any, Any] = yaml.safe_load(path.read_text())
    return document


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in workflow(path)["jobs"].values() for step in job.get("steps", [])]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_each_file_is_of_the_schema_of_its_reader(schema: str) -> None:
    assert SCHEMAS[schema]
    assert valid(schema, *SCHEMAS[schema])


def test_a_workflow_with_a_mistake_is_seen(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yml"
    bad.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "run-on:"))
    assert not valid("vendor.github-workflows", bad)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_use_actions_of_a_major_version_and_targets_and_files_that_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    uses = [step["uses"] for step in steps(path) if "uses" in step]
    uses += [job["uses"] for job in workflow(path)["jobs"].values() if "uses" in job]
    assert uses
    for action in uses:
        if action.startswith("./"):
            assert (ROOT / action).exists(), action
        else:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", action), action
    commands = "\n".join(step["run"] for step in steps(path) if "run" in step)
    assert set(re.findall(r"^make ([a-z]+)", commands, re.MULTILINE)) <= targets
    assert workflow(path)["permissions"] == {"contents": "read"}  # more only for the job that needs it


def test_jobs_need_jobs_of_their_workflow() -> None:
    for path in WORKFLOWS:
        jobs = workflow(path)["jobs"]
        for job in jobs.values():
            needs = job.get("needs", [])
            assert set([needs] if isinstance(needs, str) else needs) <= set(jobs), path


def test_the_checks_are_those_of_ci_and_run_on_every_python_that_has_wheels() -> None:
    checks = GITHUB / "workflows" / "checks.yml"
    commands = {step["run"] for step in steps(checks) if "run" in step}
    assert commands >= set(re.findall(r"^make \w+", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    assert workflow(checks)["jobs"]["test"]["strategy"]["matrix"]["python"] == PYTHONS
    assert PROJECT["tool"]["cibuildwheel"]["build"].split() == [f"cp{version.replace('.', '')}-*" for version in PYTHONS]
    assert PROJECT["project"]["requires-python"] == f">={PYTHONS[0]}"


def test_the_hooks_are_the_commands_of_make_lint() -> None:
    recipe = re.search(r"^lint: .*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe
    linted = {" ".join(line.split("$(BIN)/")[1].split()[:2]) for line in recipe[1].splitlines()}
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    hooked = {" ".join(hook["entry"].removeprefix(".venv/bin/").split()[:2]) for hook in hooks}
    assert {command.split()[0] for command in linted} == {command.split()[0] for command in hooked}
    assert {command for command in linted if command.startswith("ruff")} == {
        command for command in hooked if command.startswith("ruff")
    }


def test_the_version_of_the_project_is_the_newest_of_the_changelog_and_of_the_citation() -> None:
    version = PROJECT["project"]["version"]
    heads = re.findall(r"^## (\d+\.\d+\.\d+) ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == version
    assert len(heads) == len(set(heads))
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version


def test_files_that_the_guide_for_contributors_names_exist() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    named = {name for name in re.findall(r"`([\w./-]+/[\w./-]*)`", page) if not name.startswith("/")}
    assert len(named) > 15
    assert {name for name in named if not (ROOT / name).exists()} == set()
