"""The Dockerfile installs by scripts/setup, runs as a plain user, and keeps the caches in one volume."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from containers.files import ROOT, dockerfile_stages, last

SETUP = (ROOT / "scripts/setup").read_text()
STAGES = ["cpu", "cuda"]
CACHES = [
    "HOME",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "VLLM_CACHE_ROOT",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
]


def runs() -> list[str]:
    """Every RUN, without its mounts and the variables before the command."""
    found = {arg for stage in dockerfile_stages().values() for name, arg in stage if name == "RUN"}
    return sorted(re.sub(r"^(--mount=\S+\s+|[A-Z_]+=\S+\s+)*", "", command) for command in found)


def test_packages_are_installed_by_scripts_setup_alone() -> None:
    assert sorted(command.split()[0] for command in runs()) == [
        *["apt-get"] * 2,
        *["scripts/setup"] * 2,
        "useradd",
    ]
    assert [command for command in runs() if re.search(r"\b(pip|uv|conda|curl|wget)\b", command)] == []


def test_every_base_image_is_pinned_by_its_digest() -> None:
    stages = dockerfile_stages()
    bases = {arg.split()[0] for stage in stages.values() for name, arg in stage if name == "FROM"}
    outside = bases - stages.keys()
    assert len(outside) == 1
    assert all(re.fullmatch(r"python:3\.12\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", each) for each in outside)
    assert "# syntax=" not in (ROOT / "Dockerfile").read_text(), "an image that is pulled by its tag"


@pytest.mark.parametrize("stage", STAGES)
def test_setup_is_told_which_engine_and_knows_the_options(stage: str) -> None:
    (command,) = (command for command in runs() if f"--engine {stage}" in command)
    options = [word for word in shlex.split(command) if word.startswith("--")]
    assert options == ["--engine", "--venv", "--no-dev"]
    assert [option for option in options if f"\n    {option}) " not in SETUP] == []
    assert ("COPY", "--from=build-" + stage + " /opt/densepath /opt/densepath") in dockerfile_stages()[stage]


def test_the_system_libraries_are_those_that_setup_asks_for() -> None:
    for command in runs():
        if command.startswith("apt-get"):
            names = command.split("--no-install-recommends ")[1].split(" && ")[0]
            assert f"apt-get install {names})" in SETUP


@pytest.mark.parametrize("stage", STAGES)
def test_it_runs_as_a_plain_user_and_stops_on_sigterm(stage: str) -> None:
    uid = last(stage, "USER").split(":")[0]
    assert int(uid) > 0
    assert any(name == "RUN" and f"--uid {uid} " in arg for name, arg in dockerfile_stages()[stage])
    assert last(stage, "STOPSIGNAL") == "SIGTERM"
    assert json.loads(last(stage, "ENTRYPOINT")) == ["densepath"]


@pytest.mark.parametrize("stage", STAGES)
def test_every_cache_lies_in_the_volume(stage: str) -> None:
    volume = last(stage, "VOLUME")
    variables = " ".join(arg for name, arg in dockerfile_stages()[stage] if name == "ENV")
    values = dict(re.findall(r"([A-Z_]+)=(\S+)", variables))
    assert [name for name in CACHES if not values[name].startswith(volume)] == []


@pytest.mark.parametrize("stage", STAGES)
def test_the_health_check_asks_livez_with_python_alone(stage: str) -> None:
    options, _, command = last(stage, "HEALTHCHECK").partition(" CMD ")
    assert "--start-period" in options
    program, flag, code = json.loads(command)
    assert (program, flag) == ("python", "-c")
    assert "/livez" in code
    compile(code, "HEALTHCHECK", "exec")


def test_only_what_setup_reads_goes_to_the_build() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert sent == {"pyproject.toml", "README.md", "LICENSE", "locks", "scripts", "service"}
