"""What the container tests read: the repository's files, taken apart."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPOSE: dict[str, Any] = YAML(typ="safe", pure=True).load(ROOT / "docker-compose.yml")


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


def serve_commands() -> dict[str, list[str]]:
    """What each container runs behind `densepath`, by the file and target that say so."""
    commands = {f"Dockerfile {stage}": json.loads(last(stage, "CMD")) for stage in ("cpu", "cuda")}
    return commands | {"docker-compose.yml": COMPOSE["services"]["densepath"]["command"]}


def lock(name: str) -> list[str]:
    """The lines of locks/NAME.txt."""
    return (ROOT / "locks" / f"{name}.txt").read_text().splitlines()
