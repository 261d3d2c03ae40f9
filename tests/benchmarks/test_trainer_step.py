"""The benchmark of a trainer's step runs, and every trainer does the same work. Never a time."""

from __future__ import annotations

import importlib
import json
import operator
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import forked

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TOLERANCE = 2e-5  # nats, fp32


@pytest.mark.engine
def test_every_trainer_does_the_same_work(
    tmp_path: Path, say_difference: Callable[[str, float], None]
) -> None:
    figures = tmp_path / "figures.json"
    ran = forked.run(
        [sys.executable, BENCHMARKS / "trainer_step.py", "--quick", "--steps", "1", "--json", figures],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    contenders = json.loads(figures.read_text())["contenders"]
    assert [row["contender"] for row in contenders] == [
        "densepath",
        "densepath, transformers",
        "TRL GRPO",
        "TRL GRPO, KL to SFT",
        "TRL RLOO",
    ]
    for row in contenders:
        say_difference(f"rewards that {row['contender']} got", row["largest_difference"])
        assert row["contender"] in ran.stdout
        assert row["largest_difference"] <= TOLERANCE, row
        assert row["responses_a_step"] == 4
        assert row["tokens_a_step"] == 4 * (32 + 16), "each prompt and each response has one length"
        assert {"rollout", "rewards"} <= row["phases_median_s"].keys()
        assert sum(row["phases_median_s"].values()) < row["median_s"]


def test_a_contender_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    turns = importlib.import_module("_turns")
    with (
        pytest.raises(RuntimeError, match=r"(?s)a number: .*TypeError: 'Turn' object"),
        turns.contending(tmp_path / "log", {"a number": (operator.index,)}),
    ):
        pass
