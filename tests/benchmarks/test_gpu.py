"""The script for a GPU, run without one; and what it would start on one, checked."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

import forked
from densepath.commands.settings import ServeSettings
from densepath.config import EngineOptions
from densepath.engine.vllm.arguments import engine_arguments
from engine.test_arguments import of_gpu

ROOT = Path(__file__).parents[2]
GPU = ROOT / "benchmarks" / "gpu"
TOLERANCE = 2e-5  # nats, fp32

sys.path[:0] = [str(GPU), str(GPU.parent)]
confirm, figures = (importlib.import_module(name) for name in ("confirm", "figures"))
sys.path[:2] = []

pytestmark = pytest.mark.engine


@pytest.mark.timeout(600)
def test_the_dry_run_is_right(tmp_path: Path, say_difference: Callable[[str, float], None]) -> None:
    """Over HTTP, forked and spawned, fp32 and bf16, chunked; a window and preemptions."""
    command = [sys.executable, GPU / "confirm.py", "--dry-run", "--out", tmp_path, "--case-seconds", "400"]
    ran = forked.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-4000:]
    found = json.loads((tmp_path / "dry-run.json").read_text())
    assert [case["case"] for case in found["cases"]] == [case.name for case in confirm.DRY]
    assert {case["engine process"] for case in found["cases"]} == {"fork", "spawn", "none"}
    for case in found["cases"]:
        assert "problem" not in case
        for phase, difference in case["phases"].items():
            if case["dtype"] == "float32":
                say_difference(f"dry run, {case['case']}: {phase}", difference["largest_sft"])
                assert max(difference.values()) <= TOLERANCE


def test_what_is_wrong_is_past_a_limit() -> None:
    right = figures.Difference(1e-5, 1e-5, 1e-5, 5e-6)
    bf16 = figures.Difference(0.2, 0.2, 0.3, 0.03)
    assert figures.within_limits(right, "float32", bf16)
    assert figures.within_limits(replace(bf16, mean_r=0.029), "bfloat16", bf16)
    tf32, graphs = replace(right, mean_r=3.2e-3), replace(bf16, mean_r=1.54)
    assert not figures.within_limits(tf32, "float32", bf16), "what TF32 cost on an H200"
    assert not figures.within_limits(graphs, "bfloat16", bf16), "what shared CUDA graphs cost there"
    for field in fields(right):
        for value in (math.nan, math.inf):
            assert not figures.within_limits(replace(right, **{field.name: value}), "float32", bf16)


@pytest.mark.parametrize("case", confirm.ON_A_GPU, ids=lambda case: case.name)
def test_what_would_be_started_on_a_gpu_is_known(
    case: object, pair_dirs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    assert isinstance(case, confirm.Case)
    settings = {f"--{field.name.replace('_', '-')}" for field in fields(ServeSettings)}
    assert set((*case.options, *confirm.SHARED, *confirm.SERVE)[::2]) <= settings
    of_gpu(monkeypatch, gib=140, name="NVIDIA H200")
    arguments = case.overrides and engine_arguments(
        *pair_dirs, checkpoint_dtype=case.dtype, context_length=256, options=EngineOptions()
    )
    arguments |= case.overrides
    assert set(arguments) <= {field.name for field in fields(EngineArgs)}
    if arguments:
        assert arguments["max_num_seqs"] <= arguments["max_num_batched_tokens"]
