"""Fixtures for tests that run commands: a command in this process, and a service for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from api.running import Running, make_service, running
from densepath import cli
from densepath.engine.fake import FakeScorer
from densepath.pair.pair import Pair

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command in this process: its exit status, and what it says without blank lines."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DENSEPATH_PORT", "0")

    def run(*words: str | Path) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["densepath", *map(str, words)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        lines = capsys.readouterr().err.splitlines()
        return int(exit_info.value.code or 0), "\n".join(line for line in lines if line.strip())

    return run


@pytest.fixture(scope="module")
def gated(pair: Pair) -> Iterator[Running]:
    """A service whose engine scores only while its gate is open."""
    with running(make_service(pair, scorer=FakeScorer(64, gate=asyncio.Event()))) as served:
        yield served


@pytest.fixture
def served(gated: Running) -> Running:
    """The same, with the gate open."""
    gated.now(gated.scorer.gate.set)
    return gated


N = 600
DEMONSTRATION = json.dumps({"prompt": "two and two", "response": " is four"}) + "\n"


def write_items(path: Path, count: int = N) -> Path:
    rows = ({"id": f"i{n}", "prompt_token_ids": [1], "response_token_ids": [2 + n % 7]} for n in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]
