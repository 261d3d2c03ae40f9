"""The examples as a user runs them, on a tiny pair."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from live import finish

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    "example",
    [("trl_grpo.py",), ("trl_grpo.py", "--rloo"), ("trl_distillation.py",)],
    ids=["grpo", "rloo", "distillation"],
)
def test_the_example_trains_the_sft(
    example: tuple[str, ...], tiny_pair: tuple[Path, Path], tiny_service: str, tmp_path: Path
) -> None:
    sft, output = tiny_pair[0], tmp_path / "run"
    script, *flags = example
    command = [sys.executable, str(EXAMPLES / script), *flags, "--url", tiny_service, "--sft", str(sft)]
    done = finish(
        [*command, "--steps", "2", "--output", str(output)], env={"OMP_NUM_THREADS": "1"}, within=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    if script == "trl_grpo.py":
        assert [line.split()[:2] for line in done.stdout.splitlines() if line.startswith("step")] == [
            ["step", "1"],
            ["step", "2"],
        ]
    before, after = (load_file(path / "model.safetensors") for path in (sft, output))
    assert any(not torch.equal(before[name], after[name]) for name in before)
