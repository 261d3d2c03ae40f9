"""A step of the learner against the same step written out: no padding, no micro-batches, one process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from densepath.trainer.errors import NonFiniteStepError
from densepath.trainer.reinforce.checkpoints import load_checkpoint, save_checkpoint
from densepath.trainer.reinforce.learner import Learner, Weighted
from densepath.trainer.reinforce.workers import Workers
from live import finish
from trainer.killed import PATHS

RATE = 1e-4


def responses(count: int = 8, seed: int = 0) -> list[Weighted]:
    """Ragged prompts and responses with random advantages."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        prompt, response = (
            rng.integers(6, 300, rng.integers(1, 20)),
            rng.integers(6, 300, rng.integers(1, 12)),
        )
        made.append(Weighted(prompt.tolist(), response.tolist(), rng.normal(size=len(response))))
    return made


def written_out(directory: Path, batch: list[Weighted]) -> tuple[dict[str, torch.Tensor], list[np.ndarray]]:
    """The gradient of the loss, and the log-probabilities, one response at a time."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    logp_N_T = []
    for one in batch:
        ids = torch.tensor([[*one.prompt_ids, *one.response_ids]])
        logp_L_V = model(ids).logits[0].log_softmax(-1)
        rows = torch.arange(len(one.prompt_ids) - 1, ids.shape[1] - 1)
        logp_T = logp_L_V[rows, ids[0, 1:][rows]]
        loss = -(torch.from_numpy(one.advantage_T).float() * logp_T).sum() / len(batch)
        loss.backward()
        logp_N_T.append(logp_T.detach().numpy())
    return {name: p.grad for name, p in model.named_parameters()}, logp_N_T


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_gradient_and_log_probabilities(
    micro_batch: int | None, pair_dirs: tuple[Path, Path], say_difference: Callable[[str, float], None]
) -> None:
    batch = responses()
    learner = Learner(pair_dirs[0], Workers(), learning_rate=RATE, clip_gradient=1e9, micro_batch=micro_batch)
    figures = learner.step(batch, len(batch))
    grad, logp_N_T = written_out(pair_dirs[0], batch)
    got = {name: p.grad for name, p in learner.model.named_parameters()}
    assert got.keys() == grad.keys()
    for name, want in grad.items():
        torch.testing.assert_close(got[name], want, rtol=1e-4, atol=2e-6)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(figures.logp_N_T, logp_N_T, strict=True))
    say_difference(f"learner's log-probabilities, micro-batch {micro_batch}", difference)
    assert difference <= 2e-5
    norm = torch.stack([g.norm() for g in grad.values()]).norm()
    assert figures.grad_norm == pytest.approx(float(norm), rel=1e-4)


def test_bfloat16_is_near(pair_dirs: tuple[Path, Path]) -> None:
    batch = responses()
    figures = Learner(pair_dirs[0], Workers(), learning_rate=RATE, bfloat16=True).step(batch, len(batch))
    _, logp_N_T = written_out(pair_dirs[0], batch)
    differences = np.concatenate([np.abs(a - b) for a, b in zip(figures.logp_N_T, logp_N_T, strict=True)])
    assert 1e-4 < differences.max() < 1.0  # 8 bits of mantissa: seen, and bounded
    assert all(logp_T.dtype == np.float32 for logp_T in figures.logp_N_T)


def test_the_gradient_is_clipped_and_its_norm_told_before(pair_dirs: tuple[Path, Path]) -> None:
    batch = responses()
    learner = Learner(pair_dirs[0], Workers(), learning_rate=RATE, clip_gradient=0.01)
    assert learner.step(batch, len(batch)).grad_norm > 1
    norm = torch.stack([p.grad.norm() for p in learner.model.parameters()]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_row_48_what_is_not_finite_stops_before_the_update(
    value: float, pair_dirs: tuple[Path, Path]
) -> None:
    learner = Learner(pair_dirs[0], Workers(), learning_rate=RATE)
    before = {name: tensor.clone() for name, tensor in learner.weights()}
    batch = responses()
    batch[3].advantage_T[0] = value
    with pytest.raises(NonFiniteStepError, match="was not updated"):
        learner.step(batch, len(batch))
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.weights())
    assert not any(tensor.any() for tensor in learner.held_moments().values())


def test_row_48_a_gradient_that_overflows_stops_too(pair_dirs: tuple[Path, Path]) -> None:
    """The loss is finite, and its gradient is not."""
    learner = Learner(pair_dirs[0], Workers(), learning_rate=RATE)
    parameter = learner.model.get_parameter("model.norm.weight")
    parameter.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(NonFiniteStepError, match="gradient"):
        learner.step(responses(), 8)


def test_state_goes_on_to_the_bit(pair_dirs: tuple[Path, Path], tmp_path: Path) -> None:
    one = Learner(pair_dirs[0], Workers(), learning_rate=RATE)
    for seed in range(3):
        one.step(responses(seed=seed), 8)
    directory = save_checkpoint(
        tmp_path, 3, pair_dirs[0], one.held_weights(), one.held_moments(), Workers(), keep=1
    )
    two = Learner(pair_dirs[0], Workers(), learning_rate=RATE)
    load_checkpoint(directory, two.held_weights(), two.held_moments(), Workers())
    for learner in (one, two):
        learner.step(responses(seed=9), 8)
    other = dict(two.weights())
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.weights())


def same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether all tensors, as this process holds them, are the same to the bit."""
    return one.keys() == other.keys() and all(_local(t).equal(_local(other[name])) for name, t in one.items())


def _local(tensor: Any) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


_STEP = """
import sys
from pathlib import Path
from safetensors.torch import save_file
from trainer.reinforce.test_learner import RATE, responses, same_state
from densepath.trainer.reinforce.checkpoints import load_checkpoint, save_checkpoint
from densepath.trainer.reinforce.learner import Learner
from densepath.trainer.reinforce.workers import Workers

with Workers() as workers:
    batch = responses()
    learner = Learner(Path(sys.argv[1]), workers, learning_rate=RATE, micro_batch=2)
    figures = learner.step(workers.share(batch), len(batch))
    weights = {name: tensor.contiguous() for name, tensor in learner.weights()}
    folder, source = Path(sys.argv[3]), Path(sys.argv[1])
    held = learner.held_weights(), learner.held_moments()
    save_checkpoint(folder, 1, source, *held, workers, keep=9)
    again = Learner(source, workers, learning_rate=RATE, micro_batch=2)
    into = again.held_weights(), again.held_moments()
    load_checkpoint(folder / "step-000001", *into, workers)
    assert all(map(same_state, into, held)), "each process has its own part again"
    load_checkpoint(folder / "step-000000", *into, workers)  # that one process wrote
    save_checkpoint(folder, 2, source, *into, workers, keep=9)
    if workers.first:
        save_file(weights, sys.argv[2], {"norm": str(figures.grad_norm), "loss": str(figures.loss)})
"""


def test_two_processes_take_the_step_of_one(
    pair_dirs: tuple[Path, Path], tmp_path: Path, say_difference: Callable[[str, float], None]
) -> None:
    """FSDP2 under torchrun, two processes on the CPU (gloo)."""
    batch = responses()
    learner = Learner(pair_dirs[0], Workers(), learning_rate=RATE)
    figures = learner.step(batch, len(batch))
    script, saved, folder = tmp_path / "step.py", tmp_path / "two.safetensors", tmp_path / "checkpoints"
    held = learner.held_weights(), learner.held_moments()
    save_checkpoint(folder, 0, pair_dirs[0], *held, Workers(), keep=9)
    script.write_text(_STEP)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, PATHS))}
    words = map(str, (script, pair_dirs[0], saved, folder))
    done = finish([*command, *words], env=environment, within=120)
    assert done.returncode == 0, done.stderr[-3000:]
    two = load_file(saved)
    again = Learner(pair_dirs[0], Workers(), learning_rate=RATE)
    into = again.held_weights(), again.held_moments()
    load_checkpoint(folder / "step-000002", *into, Workers())
    assert all(map(same_state, into, held)), "one process to two and back"
    one = dict(learner.weights())
    assert two.keys() == one.keys()
    difference = max(float((two[name] - tensor).abs().max()) for name, tensor in one.items())
    say_difference("FSDP2 step, two processes against one: largest difference of a parameter", difference)
    assert difference <= 1e-5
    moved = AutoModelForCausalLM.from_pretrained(pair_dirs[0], dtype=torch.float32).state_dict()
    assert max(float((moved[name] - tensor).abs().max()) for name, tensor in two.items()) > 5e-5
    assert figures.grad_norm > 0
