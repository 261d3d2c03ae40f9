"""Hybrids in vLLM against transformers: states that start over, are replayed, and are shared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from architectures.specimen import make_config
from architectures.zoo import ZOO
from checkpoints import write_checkpoint
from densepath.engine.vllm.arguments import is_hybrid
from densepath.sequences import from_response

from .test_vllm_pair import count_preemptions, largest_difference, offline, oracle

pytestmark = pytest.mark.engine

#: Of transformers' own rounding in linear attention: see tests/architectures.
TOLERANCE = {"Qwen3.5": 2e-4}
#: Of the cache: so few that requests are preempted.
BLOCKS = {"Qwen3.5": 28}


@pytest.mark.parametrize("name", TOLERANCE)
def test_preempted_requests_and_shared_prompts(
    name: str,
    tmp_path: Path,
    say_difference: Callable[[str, float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cache too small for what runs, then rollouts of one prompt whose state is kept."""
    config = make_config(ZOO[name])
    sft, reference = (
        write_checkpoint(tmp_path / side, config, seed=seed)
        for seed, side in enumerate(("sft", "reference"), start=1)
    )
    rng = np.random.default_rng(3)
    sequences = [
        from_response(rng.integers(0, 300, 20), rng.integers(0, 300, int(n)))
        for n in rng.integers(150, 236, 24)
    ]
    prompt = rng.integers(0, 300, 150)
    rollouts = [from_response(prompt, rng.integers(0, 300, 20 + 10 * k)) for k in range(6)]
    want, want_rollouts = oracle(sft, reference, sequences), oracle(sft, reference, rollouts)
    preempted = count_preemptions(monkeypatch)
    tight = {
        "num_gpu_blocks_override": BLOCKS[name],
        "scheduler_reserve_full_isl": False,
        "long_prefill_token_threshold": 32,
        "max_num_batched_tokens": 256,
    }
    with offline(sft, reference, **tight) as engine:
        got = engine.score(sequences)
    assert preempted, "the test must force what it tests"
    with offline(sft, reference) as engine:
        got_rollouts = engine.score(rollouts)
    shared = [scored.cached_tokens for scored in got_rollouts]
    difference = max(largest_difference(got, want), largest_difference(got_rollouts, want_rollouts))
    say_difference(f"{name}: {len(preempted)} preemptions, cached tokens {shared}", difference)
    assert difference <= TOLERANCE[name]
    assert sorted(shared)[1] >= 96, "all rollouts but the first start from the kept state of the prompt"


def test_vllm_names_the_hybrids() -> None:
    hybrids = ("Qwen3NextForCausalLM", "Qwen3_5ForCausalLM", "FalconH1ForCausalLM", "Lfm2ForCausalLM")
    assert all(is_hybrid(name) for name in hybrids)
    assert not any(is_hybrid(name) for name in ("LlamaForCausalLM", "Qwen3ForCausalLM", "NoSuchModel"))
