"""scripts/setup decides on the engine and the source of torch, and says in words where it cannot go on."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from containers.files import ROOT


def bash(script: str, *, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs lines of bash behind scripts/common.sh, with `path` before the other programs."""
    variables = {"PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"], **environment}
    lines = f"set -euo pipefail; source scripts/common.sh; {script}"
    return subprocess.run(
        ["bash", "-c", lines], cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )


def program(directory: Path, name: str, body: str) -> Path:
    """Writes an executable that stands in for a real one."""
    file = directory / name
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)
    return file


def test_a_gpu_that_answers_is_found(tmp_path: Path) -> None:
    program(tmp_path, "nvidia-smi", "echo 'GPU 0: a GPU'")
    assert bash("has_nvidia_gpu", path=tmp_path).returncode == 0


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this machine has a GPU")
@pytest.mark.parametrize("body", ["exit 9", "echo 'No devices were found'"])
def test_a_driver_without_a_gpu_is_no_gpu(tmp_path: Path, body: str) -> None:
    program(tmp_path, "nvidia-smi", body)
    assert bash("has_nvidia_gpu", path=tmp_path).returncode == 1


@pytest.mark.parametrize(
    ("accepts", "links", "source"),
    [
        ("--find-links", "/wheels /more", "--find-links /wheels --find-links /more"),
        ("--torch-backend", "/wheels", "--torch-backend cpu"),
        ("--torch-backend", "", "--torch-backend cpu"),
    ],
)
def test_torch_comes_from_find_links_else_from_its_own_index(
    tmp_path: Path, accepts: str, links: str, source: str
) -> None:
    uv = program(tmp_path, "uv", f'case "$*" in *{accepts}*) exit 0 ;; esac; exit 1')
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin", "python", "exit 1")  # pip config get, with nothing configured
    lines = f"UV={uv}; get_find_links {tmp_path}; get_torch_source python3 torch==1+cpu"
    done = bash(f'{lines}; echo "${{TORCH_SOURCE[*]}}"', PIP_FIND_LINKS=links)
    assert done.stdout.strip() == source, done.stderr


def test_find_links_come_from_pip_settings_where_the_environment_has_none(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin", "python", "echo /configured")
    done = bash(f'get_find_links {tmp_path}; echo "${{FIND_LINKS[*]}}"')
    assert done.stdout.strip() == "--find-links /configured", done.stderr


def test_without_a_torch_wheel_it_says_what_would_help(tmp_path: Path) -> None:
    uv = program(tmp_path, "uv", "echo 'no such wheel'; exit 1")
    done = bash(f"UV={uv}; FIND_LINKS=(); get_torch_source python3 torch==1+cpu")
    assert done.returncode == 1
    for word in ("no such wheel", "torch==1+cpu", "PIP_FIND_LINKS", "PyTorch's CPU index"):
        assert word in done.stderr


@pytest.mark.parametrize(
    ("pin", "refusal"),
    [
        ("right", ""),
        ("wrong", "Hash mismatch for `thing==1`"),
        ("absent", "all requirements must have a hash"),
    ],
)
def test_a_file_that_is_not_the_lock_s_is_refused(tmp_path: Path, pin: str, refusal: str) -> None:
    wheel = tmp_path / "thing-1-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        for name, text in (
            ("METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1\n"),
            ("WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
            (
                "RECORD",
                "thing-1.dist-info/METADATA,,\nthing-1.dist-info/WHEEL,,\nthing-1.dist-info/RECORD,,\n",
            ),
        ):
            archive.writestr(f"thing-1.dist-info/{name}", text)
    digest = {"right": hashlib.sha256(wheel.read_bytes()).hexdigest(), "wrong": "0" * 64}.get(pin)
    lock = tmp_path / "lock.txt"
    lock.write_text(f"thing==1 --hash=sha256:{digest}\n" if digest else "thing==1\n")
    command = f"pip install --no-index --find-links {tmp_path} --target {tmp_path}/target -r {lock}"
    done = bash(f'{sys.prefix}/installer/bin/uv {command} --cache-dir {tmp_path}/cache "${{HASHED[@]}}"')
    assert bool(done.returncode) == bool(refusal), done.stderr
    assert refusal in done.stderr


def test_another_python_is_refused_in_words(tmp_path: Path) -> None:
    old = program(tmp_path, "python3.9", "exit 1")
    done = bash("find_python", PYTHON=str(old))
    assert done.returncode == 1
    assert "needs Python 3.11 or 3.12" in done.stderr


@pytest.mark.parametrize("arguments", [["--engine", "abacus"], ["--engine"], ["--gpu"]])
def test_a_wrong_option_is_refused_before_anything_is_made(arguments: list[str], tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    command = [str(ROOT / "scripts/setup"), "--venv", str(venv), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "--engine" in done.stderr
    assert not venv.exists()


def test_a_directory_that_is_no_environment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("precious")
    command = [str(ROOT / "scripts/setup"), "--engine", "cpu", "--venv", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no virtual environment" in done.stderr
    assert (tmp_path / "work").read_text() == "precious"


@pytest.mark.parametrize("target", ["serve", "demo", "check", "test", "bench"])
def test_each_target_sets_up_what_is_missing(target: str) -> None:
    command = ["make", "--dry-run", "--no-print-directory", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "scripts/setup"


def test_ci_runs_what_people_run() -> None:
    text = (ROOT / ".ci/run").read_text()
    assert "for target in setup test-tools check test; do" in text
    assert 'make "$target"' in text
