"""What the container tests read: the repository's files, taken apart."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPOSE_FILES = ("docker-compose.yml", "docker-compose.pair.yml", "docker-compose.cuda.yml")


def dockerfile_stages() -> dict[str, list[tuple[str, str]]]:
    """Each stage's (instruction, argument) pairs, those of the stages that it stands on first."""
    text = re.sub(
        r"\\\n\s*", "", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    )
    stages: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for line in filter(str.strip, text.splitlines()):
        instruction, _, argument = line.partition(" ")
        if instruction == "FROM":
            parent, name = re.split(r"\s+AS\s+", argument)
            current = stages[name] = list(stages.get(parent, []))
        current.append((instruction, argument))
    return stages


def last(stage: str, instruction: str) -> str:
    """The argument of the stage's last instruction of this name: the one that holds."""
    return [argument for name, argument in dockerfile_stages()[stage] if name == instruction][-1]


def read_yaml(path: str) -> dict[str, Any]:
    """A file of the repository."""
    found: dict[str, Any] = YAML(typ="safe", pure=True).load(ROOT / path)
    return found


def compose(*overrides: str) -> dict[str, Any]:
    """docker-compose.yml with override files laid over it, as `docker compose -f … -f …` does."""
    merged = read_yaml("docker-compose.yml")
    for name in overrides:
        merged = _over(merged, read_yaml(name))
    return merged


def _over(below: Any, above: Any, key: str = "") -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {
            name: _over(below[name], value, name) if name in below else value for name, value in above.items()
        }
    if isinstance(below, list) and isinstance(above, list) and key != "command":
        return [*below, *above]
    return above


def densepath_commands() -> dict[str, list[str]]:
    """What each container runs behind `densepath`, by the file and target that say so."""
    commands = {f"Dockerfile {stage}": json.loads(last(stage, "CMD")) for stage in ("cpu", "cuda")}
    for name in COMPOSE_FILES[:2]:
        for service, settings in read_yaml(name)["services"].items():
            if service in ("densepath", "trainer"):
                commands[f"{name} {service}"] = settings["command"]
    return commands


@cache
def options_of(command: str) -> set[str]:
    """The options that `densepath COMMAND --help` lists, and their environment variables."""
    words = [sys.executable, "-c", "from densepath.cli import main; main()", command, "--help"]
    plain = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1", "PYTHONPATH": str(ROOT / "service")}
    done = subprocess.run(words, env=os.environ | plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"--[a-z][a-z-]*|DENSEPATH_[A-Z_]+", done.stdout))


def lock(name: str) -> list[str]:
    """The pins of locks/NAME.txt, without the hashes of their files."""
    return list(hashes(name))


@cache
def hashes(name: str) -> dict[str, list[str]]:
    """The pins of locks/NAME.txt, each with its hashes, `sha256:...`."""
    text = (ROOT / "locks" / f"{name}.txt").read_text().replace("\\\n", " ")
    return {
        pin.strip(): [digest.strip() for digest in found]
        for pin, *found in (line.split("--hash=") for line in text.splitlines())
    }
