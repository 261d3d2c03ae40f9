"""The workflows run what people run, with pinned actions and few permissions; zizmor sees the rest."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
from ruamel.yaml import YAML

from release.conftest import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.fixture(scope="module", params=WORKFLOWS, ids=lambda path: path.name)
def workflow(request: pytest.FixtureRequest) -> Any:
    return YAML(typ="safe", pure=True).load(request.param)


def steps(workflow: Any) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", ())]


def test_every_action_is_pinned_by_its_commit() -> None:
    lines = [line for path in WORKFLOWS for line in path.read_text().splitlines() if "uses:" in line]
    assert len(lines) > 10
    for line in lines:
        assert re.search(
            r"uses: (?:[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+|\$/\.github/workflows/\w+\.yml)$", line
        ), line


def test_a_job_may_do_little_and_ends(workflow: Any) -> None:
    assert workflow["permissions"] == {}
    for name, job in workflow["jobs"].items():
        assert job["permissions"], name
        assert "uses" in job or job["timeout-minutes"], name
    for step in steps(workflow):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"] == {"persist-credentials": False}


def test_what_it_makes_are_targets(workflow: Any) -> None:
    for step in steps(workflow):
        if step.get("run", "").startswith("make "):
            done = subprocess.run(
                [*step["run"].split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr


def test_both_pythons_run_what_ci_runs() -> None:
    check = YAML(typ="safe", pure=True).load(ROOT / ".github/workflows/check.yml")
    for job in ("check", "test"):
        assert check["jobs"][job]["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    (targets,) = re.findall(r"for target in (.+); do", (ROOT / ".ci/run").read_text())
    assert {f"make {target}" for target in targets.split()} <= {step.get("run") for step in steps(check)}


def test_the_release_takes_the_uv_of_the_scripts() -> None:
    text = (ROOT / ".github/workflows/release.yml").read_text()
    assert re.findall(r"pip\" install (.+)", text) == ["--quiet --require-hashes --requirement locks/uv.txt"]


def test_a_release_says_what_is_in_its_images() -> None:
    jobs = YAML(typ="safe", pure=True).load(ROOT / ".github/workflows/release.yml")["jobs"]
    (build,) = (step for step in jobs["images"]["steps"] if step.get("id") == "image")
    (attested,) = (step for step in jobs["images"]["steps"] if "attest-sbom@" in step.get("uses", ""))
    assert ' cat "$name@${digest#*@}" /opt/densepath/sbom.cdx.json >"$ENGINE.cdx.json"' in build["run"]
    assert build["env"]["ENGINE"] == "${{ matrix.engine }}"
    assert attested["with"]["sbom-path"] == "${{ matrix.engine }}.cdx.json"
    assert '"$venv/sbom.cdx.json"' in (ROOT / "scripts/setup").read_text()
