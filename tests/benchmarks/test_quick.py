"""The benchmarks run, and every contender scores right. Never a time: those are for a quiet machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import forked

ROOT = Path(__file__).parents[2]
TOLERANCE = 2e-5  # nats, fp32

pytestmark = pytest.mark.engine


def test_pair_against_two_engines(tmp_path: Path, say_difference: Callable[[str, float], None]) -> None:
    figures = tmp_path / "figures.json"
    script = ROOT / "benchmarks" / "pair_against_two_engines.py"
    ran = forked.run(
        [sys.executable, script, "--quick", "--runs", "1", "--json", figures],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    workloads = json.loads(figures.read_text())["workloads"]
    assert [(w["prompts"], w["rollouts"]) for w in workloads] == [(1, 4), (2, 1)]
    for workload in workloads:
        assert len(workload["contenders"]) == 7
        for row in workload["contenders"]:
            say_difference(
                f"benchmark, K = {workload['rollouts']}: {row['contender']}", row["largest_difference"]
            )
            assert row["contender"] in ran.stdout
            assert row["largest_difference"] <= TOLERANCE, row
