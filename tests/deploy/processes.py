"""The containers of docker-compose.yml as processes: their commands, rewritten in places and ports alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from containers.files import compose, last
from deploy.expressions import DEPLOY

COMMANDS: dict[str, list[str]] = {
    name: settings["command"] for name, settings in compose()["services"].items() if "command" in settings
}


def rewritten(name: str, changes: dict[str, str]) -> list[str]:
    """A container's command with parts of its words replaced; each replacement must be there."""
    words = list(COMMANDS[name])
    for old, new in changes.items():
        assert any(old in word for word in words), (name, old)
        words = [word.replace(old, new) for word in words]
    return words


@contextmanager
def process(
    words: list[str], log: Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process until the block ends."""
    with log.open("ab") as output:
        started = subprocess.Popen(words, stdout=output, stderr=output, env=os.environ | (env or {}))
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(timeout=30)
        finally:
            started.kill()
            started.wait()


def densepath(name: str, changes: dict[str, str], *more: str) -> list[str]:
    """A container's densepath command; a later option wins over an earlier one."""
    return [sys.executable, "-m", "densepath", *rewritten(name, changes), *more]


def until(found: Callable[[], Any], what: str, log: Path, within: float = 60) -> Any:
    """What is found, once it is something; a server that does not listen yet counts as nothing."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if value := found():
                return value
        except httpx.TransportError:
            pass
        time.sleep(0.1)  # between two looks at the condition
    raise AssertionError(f"{what}:\n{log.read_text()[-3000:]}")


@dataclass
class Prometheus:
    """A running Prometheus."""

    url: str
    log: Path

    def get(self, path: str, **params: str) -> Any:
        """The data of an answer of its HTTP API."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=params).json()
        assert answer["status"] == "success", (params, answer)
        return answer["data"]

    def numbers(self, expression: str) -> list[float]:
        """The values that an expression has now, those that are no number left out."""
        values = (float(row["value"][1]) for row in self.get("query", query=expression)["result"])
        return [value for value in values if value == value]

    def until_numbers(self, expression: str, within: float = 60) -> list[float]:
        """The same, once there are some."""
        found: list[float] = until(
            lambda: self.numbers(expression), f"no data: {expression}", self.log, within
        )
        return found


@contextmanager
def prometheus(targets: dict[str, str], port: int, folder: Path) -> Iterator[Prometheus]:
    """Prometheus as compose runs it, its targets' addresses replaced, looking every second."""
    config = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    for old, new in {**targets, "127.0.0.1:9090": f"127.0.0.1:{port}"}.items():
        assert config.count(f'"{old}"') == 1
        config = config.replace(f'"{old}"', f'"{new}"')
    config, changed = re.subn(r"(_interval: )15s", r"\g<1>1s", config)
    assert changed == 2
    (folder / "prometheus.yml").write_text(config)
    (folder / "alerts.yml").write_text((DEPLOY / "prometheus" / "alerts.yml").read_text())
    words = rewritten("prometheus", {"/etc/prometheus": str(folder), "=/prometheus": f"={folder / 'data'}"})
    with process(["prometheus", *words, f"--web.listen-address=127.0.0.1:{port}"], folder / "prometheus.log"):
        running = Prometheus(f"http://127.0.0.1:{port}", folder / "prometheus.log")
        until(
            lambda: httpx.get(f"{running.url}/-/ready").status_code == 200, "Prometheus is away", running.log
        )
        yield running


def cache_path() -> str:
    """Where the image keeps what densepath builds."""
    return last("cpu", "VOLUME")
