"""Row 45: the wall clock jumps by a day, forwards and back. No duration and no order follows it."""

from __future__ import annotations

import ast
import asyncio
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.bodies import GOOD
from api.running import Running, make_service, pair, running
from densepath import Client
from densepath.engine.fake import FakeScorer
from densepath.errors import DeadlineExceededError
from densepath.pair.pair import Pair
from densepath.trainer.reinforce.checkpoints import newest_checkpoint
from docs.blocks import ROOT
from trainer.killed import save

__all__ = ["pair"]  # a fixture

DAY = 86400.0
#: Where the code reads the wall clock: only to say when something was, and once for the times of files.
WALL_CLOCK = {
    "api/answers.py": "`created` of an answer",
    "api/compat/completions.py": "`created` of an answer",
    "api/compat/sglang.py": "a time in SGLang's answers",
    "api/compat/vllm_generate.py": "`created` of an answer",
    "api/routes.py": "`created` of the models",
    "client/answers.py": "a Retry-After that is a date, if the answer has no Date",
    "pair/identity.py": "how long ago a file changed; a wrong clock only leaves out or adds a short wait",
    "telemetry/logs.py": "the timestamp of a line",
    "trainer/evaluate/judges.py": "the time of an answer in the format of a judge",
    "trainer/reinforce/journal.py": "when a run began",
    "verification/start.py": "when the engine was verified",
}


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real, days = time.time, itertools.cycle((DAY, -DAY))
    monkeypatch.setattr(time, "time", lambda: real() + next(days))
    yield
    assert abs(time.time() - real()) > DAY / 2, "the clock did not jump"


@pytest.fixture
def held(pair: Pair) -> Iterator[Running]:
    """A service whose engine waits for its gate."""
    with running(make_service(pair, scorer=FakeScorer(64, gate=asyncio.Event()))) as served:
        yield served
        served.idle()


@pytest.mark.usefixtures("jumping")
def test_row_45_a_deadline_neither_passes_early_nor_never(held: Running) -> None:
    gate = held.scorer.gate
    assert gate is not None
    with Client(f"http://127.0.0.1:{held.port}") as client:
        with pytest.raises(DeadlineExceededError):
            client.score([GOOD], deadline=0.3)
        answer = held.client.post("/v1/rewards", json={"items": [GOOD]}, headers={"X-Request-Timeout": "0.2"})
        assert answer.status_code == 504
        held.now(gate.set)
        assert client.score([GOOD], deadline=30)[0].reward_T is not None
        answer = held.client.post("/v1/rewards", json={"items": [GOOD]}, headers={"X-Request-Timeout": "30"})
        assert answer.status_code == 200


def test_row_45_the_newest_checkpoint_is_the_one_of_the_last_step(
    pair_dirs: tuple[Path, Path], tmp_path: Path
) -> None:
    for step in (9, 10):
        save(tmp_path, pair_dirs[0], step, keep=2)
    for path in tmp_path.rglob("*"):
        days = 1 if "step-000009" in str(path) else -1
        os.utime(path, (time.time() + days * DAY,) * 2)
    found = newest_checkpoint(tmp_path, pytest.fail)
    assert found is not None
    assert found[0] == 10


def is_wall_clock(node: ast.AST) -> bool:
    return ast.unparse(node) in {
        "time.time",
        "time.time_ns",
        "datetime.now",
        "datetime.utcnow",
        "datetime.today",
        "date.today",
    }


def test_row_45_the_wall_clock_measures_nothing() -> None:
    package = ROOT / "service/densepath"
    readers = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any(
            is_wall_clock(node)
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Attribute)
        )
    }
    assert readers == set(WALL_CLOCK), "a duration is measured by time.monotonic or time.perf_counter"
