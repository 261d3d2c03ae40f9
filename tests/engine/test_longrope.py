"""LongRoPE against transformers: short and long factors by the length of each sequence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import make_checkpoint
from densepath.sequences import Sequence, from_mask, from_response

from .other_checkpoints import make_other
from .test_vllm_pair import CHUNKED, TOLERANCE, count_preemptions, largest_difference, offline, oracle

pytestmark = pytest.mark.engine

LIMIT = 256
LONG = {"max_model_len": 700}


def make_phi3(directory: Path, seed: int, limit: int = LIMIT) -> Path:
    factors = np.arange(16)
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": limit,
        "short_factor": (1 + 0.02 * factors).tolist(),
        "long_factor": (1 + 0.3 * factors).tolist(),
    }
    return make_other(
        directory, "phi3", seed=seed, rope_parameters=rope, original_max_position_embeddings=limit
    )


def around(limits: tuple[int, ...]) -> list[Sequence]:
    """Sequences on both sides of each limit, to the token; rollouts of one prompt on both sides."""
    rng = np.random.default_rng(11)

    def ids(n: int) -> np.ndarray:
        return rng.integers(0, 300, n)

    single = [from_response(ids(n // 2), ids(n - n // 2)) for n in (2, 30, 130, 340, 650)]
    edges = [from_response(ids(n - 20), ids(20)) for limit in limits for n in (limit - 1, limit, limit + 1)]
    prompts = [ids(limit - 56) for limit in limits]
    rollouts = [from_response(prompt, ids(k)) for prompt in prompts for k in (40, 56, 57, 90, 55)]
    # What comes after the last scored token makes a sequence long, and is not run.
    tails = [
        from_mask(ids(limit + extra), np.arange(limit + extra) // 30 == 3)
        for limit in limits
        for extra in (0, 1)
    ]
    return [*single, *edges, *rollouts, *tails]


@pytest.mark.parametrize(
    "limits", [(LIMIT, LIMIT), (LIMIT, 128), (LIMIT, None)], ids=["one limit", "two limits", "with llama"]
)
def test_each_sequence_takes_the_factors_of_its_length(
    limits: tuple[int, int | None], tmp_path: Path, say_difference: Callable[[str, float], None]
) -> None:
    sft = make_phi3(tmp_path / "sft", 1)
    if limits[1] is None:
        reference = make_checkpoint(tmp_path / "reference", seed=2)
    else:
        reference = make_phi3(tmp_path / "reference", 2, limits[1])
    sequences = around(tuple({limit for limit in limits if limit}))
    want = oracle(sft, reference, sequences)
    with offline(sft, reference, **LONG, **CHUNKED) as engine:
        rounds = [engine.score(each) for each in (sequences, sequences)]
        backwards = engine.score(sequences[::-1])[::-1]
        alone = [engine.score([sequence])[0] for sequence in sequences]
    difference = max(largest_difference(got, want) for got in (*rounds, backwards, alone))
    say_difference(f"LongRoPE, limits {limits}: chunked, cold, warm, alone", difference)
    assert difference <= TOLERANCE
    assert sum(scored.cached_tokens for scored in rounds[1]) > 0, "the second round is warm"


def test_a_context_within_the_limit(tmp_path: Path, say_difference: Callable[[str, float], None]) -> None:
    """vLLM takes the short factors for all."""
    sft, reference = make_phi3(tmp_path / "sft", 1), make_phi3(tmp_path / "reference", 2)
    sequences = [each for each in around((LIMIT,)) if len(each.token_ids_L) <= LIMIT]
    with offline(sft, reference, **CHUNKED, max_model_len=LIMIT) as engine:
        difference = largest_difference(engine.score(sequences), oracle(sft, reference, sequences))
    say_difference("LongRoPE, context length within the limit", difference)
    assert difference <= TOLERANCE


def test_preempted_sequences_of_both_kinds(
    tmp_path: Path, say_difference: Callable[[str, float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sft, reference = make_phi3(tmp_path / "sft", 1), make_phi3(tmp_path / "reference", 2)
    rng = np.random.default_rng(3)
    prompt = rng.integers(0, 300, 100)
    sequences = [from_response(prompt, rng.integers(0, 300, int(n))) for n in rng.integers(100, 212, 24)]
    want = oracle(sft, reference, sequences)
    preempted = count_preemptions(monkeypatch)
    tight: dict[str, Any] = {
        "num_gpu_blocks_override": 40,
        "scheduler_reserve_full_isl": False,
        "long_prefill_token_threshold": 32,
        "max_num_batched_tokens": 256,
        "max_model_len": 400,
    }
    with offline(sft, reference, **tight) as engine:
        difference = largest_difference(engine.score(sequences), want)
    say_difference(f"LongRoPE, {len(preempted)} preemptions", difference)
    assert preempted, "the test must force what it tests"
    assert difference <= TOLERANCE


def test_what_the_models_get_stays_where_it_is() -> None:
    """A CUDA graph reads its inputs where they were when it was captured."""
    import torch
    from torch import nn
    from vllm.model_executor.layers.rotary_embedding.phi3_long_rope_scaled_rope import (
        Phi3LongRoPEScaledRotaryEmbedding,
    )

    from densepath.engine.vllm.longrope import LongRope, ShortSequences

    class Built(Phi3LongRoPEScaledRotaryEmbedding):  # type: ignore[misc]  # vllm is untyped here
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.use_long_rope, self.original_max_position_embeddings = True, LIMIT

    longrope = LongRope(ShortSequences((LIMIT, None), 320), (Built(), nn.Linear(1, 1)), rows=8)
    positions = torch.arange(4)
    ids, sft, reference = longrope(torch.tensor([5, 6, 320 + 5, 320 + 319], dtype=torch.int32), positions)
    places = ids.data_ptr(), sft.data_ptr()
    assert ids.tolist() == [5, 6, 5, 319]
    assert sft.tolist() == [0, 1, 2 - LIMIT, 3 - LIMIT]
    assert reference is positions, "the model without LongRoPE has what it always had"
    ids, sft, _ = longrope(torch.tensor([320, 7], dtype=torch.int32), positions[:2])
    assert (ids.data_ptr(), sft.data_ptr()) == places
    with pytest.raises(ValueError, match="has not built the reference's LongRoPE as its config"):
        LongRope(ShortSequences((LIMIT, LIMIT), 320), (Built(), nn.Linear(1, 1)), rows=8)


def test_vllm_adds_the_limit_to_every_position() -> None:
    import inspect

    from vllm.model_executor.layers.rotary_embedding.phi3_long_rope_scaled_rope import (
        Phi3LongRoPEScaledRotaryEmbedding as Rope,
    )

    source = inspect.getsource(Rope)
    assert "k = self.original_max_position_embeddings" in source, (
        "positions are lowered by another number now"
    )
    assert "idx = torch.add(positions, long_prompt_offset)" in source, (
        "the row of a position is found otherwise"
    )
    assert "torch.cat([short_cache, long_cache], dim=0)" in source, "the table has another order"
