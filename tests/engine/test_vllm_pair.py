"""The pair inside vLLM against transformers in fp32: every architecture, every way a batch can be cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import make_checkpoint
from densepath.config import EngineOptions
from densepath.engine.scorer import Scored, View
from densepath.engine.transformers import TransformersScorer
from densepath.engine.vllm.arguments import engine_arguments
from densepath.pair.pair import load_pair
from densepath.sequences import Sequence, from_mask, from_response

from .in_process import start_offline

pytestmark = pytest.mark.engine

TOLERANCE = 2e-5  # fp32 weights, natural logarithm
CONTEXT = 256
#: Chunks of 64 tokens cut every long sequence; three sequences run at once.
CHUNKED = {"max_num_batched_tokens": 64, "max_num_seqs": 3}

PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": ({"architecture": "llama"}, {"architecture": "llama"}),
    "qwen2": ({"architecture": "qwen2"}, {"architecture": "qwen2"}),
    "qwen3": ({"architecture": "qwen3"}, {"architecture": "qwen3"}),
    "qwen3 tied": ({"architecture": "qwen3", "tie": True}, {"architecture": "qwen3", "tie": True}),
    "mistral, sliding window": ({"architecture": "mistral"}, {"architecture": "mistral"}),
    "gemma2": ({"architecture": "gemma2"}, {"architecture": "gemma2"}),
    "gemma3": ({"architecture": "gemma3"}, {"architecture": "gemma3"}),
    "llama of two sizes": (
        {"architecture": "llama", "hidden_size": 128, "layers": 3},
        {"architecture": "llama", "hidden_size": 64, "layers": 1},
    ),
    "qwen3 with llama": ({"architecture": "qwen3"}, {"architecture": "llama"}),
    "sft with more padded rows": ({"architecture": "llama", "vocab_size": 384}, {"architecture": "llama"}),
    "reference with more padded rows, tied": (
        {"architecture": "qwen3", "tie": True},
        {"architecture": "qwen3", "tie": True, "vocab_size": 384},
    ),
}


def workload(vocab_size: int) -> list[Sequence]:
    """Ragged sequences, rollouts of shared prompts, masks with holes, repeats, the full context length."""
    rng = np.random.default_rng(7)

    def ids(n: int) -> np.ndarray:
        return rng.integers(0, vocab_size, n)

    ragged = [from_response(ids(1 + i * 17 % 90), ids(1 + i * 29 % 140)) for i in range(8)]
    prompts = [ids(100), ids(65), ids(64)]
    rollouts = [from_response(prompt, ids(5 + 11 * k)) for prompt in prompts for k in range(4)]
    # The same prompt with its last tokens scored: the cache hit must end before the first of them.
    earlier = [from_response(prompt[: len(prompt) // 2], prompt[len(prompt) // 2 :]) for prompt in prompts]
    masks = [from_mask(ids(n), np.arange(n) % 7 > 3) for n in (30, 129, 200)]
    longest = [from_response(ids(CONTEXT - 1), ids(1)), from_response(ids(1), ids(CONTEXT - 1))]
    return [*ragged, *rollouts, *earlier, *masks, *longest, *rollouts[:3]]


def largest_difference(got: list[Scored], want: list[Scored]) -> float:
    """Over all tokens of all sequences and both models."""
    assert len(got) == len(want)
    return max(
        float(np.abs(a - b).max())
        for g, w in zip(got, want, strict=True)
        for a, b in ((g.logp_sft_T, w.logp_sft_T), (g.logp_reference_T, w.logp_reference_T))
    )


def tiny_arguments(sft: Path, reference: Path, **options: Any) -> dict[str, Any]:
    return engine_arguments(
        sft,
        reference,
        checkpoint_dtype="float32",
        context_length=CONTEXT,
        options=EngineOptions(kv_cache_memory_bytes=32 << 20, **options),
    )


@contextmanager
def offline(sft: Path, reference: Path, **overrides: Any) -> Iterator[Any]:
    engine = start_offline(tiny_arguments(sft, reference) | overrides)
    try:
        yield engine
    finally:
        engine.close()


def oracle(sft: Path, reference: Path, sequences: list[Sequence]) -> list[Scored]:
    scorer = TransformersScorer(sft, reference, context_length=CONTEXT)
    scorer.load()
    return [scorer.score_now(sequence) for sequence in sequences]


@pytest.mark.parametrize("name", PAIRS)
def test_pair_equals_transformers(
    name: str, tmp_path: Path, say_difference: Callable[[str, float], None]
) -> None:
    sft_kind, reference_kind = PAIRS[name]
    sft = make_checkpoint(tmp_path / "sft", seed=1, **sft_kind)
    reference = make_checkpoint(tmp_path / "reference", seed=2, **reference_kind)
    pair = load_pair(sft, reference, cache_dir=tmp_path)
    sequences = workload(pair.embedding_size)
    want = oracle(sft, reference, sequences)
    with offline(sft, reference, **CHUNKED) as engine:
        cold, warm = engine.score(sequences), engine.score(sequences)
    difference = max(largest_difference(cold, want), largest_difference(warm, want))
    say_difference(f"pair in vLLM, {name}: chunked, cold and warm", difference)
    assert difference <= TOLERANCE
    assert sum(scored.cached_tokens for scored in warm) > 0, "the prompts of the second round are cached"


@pytest.mark.parametrize(("architecture", "blocks"), [("llama", 40), ("mistral", 16)])
def test_preempted_requests_score_right(
    architecture: Any,
    blocks: int,
    tmp_path: Path,
    say_difference: Callable[[str, float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cache too small for what runs: requests are preempted in mid-prefill and replayed."""
    sft = make_checkpoint(tmp_path / "sft", architecture, seed=1)
    reference = make_checkpoint(tmp_path / "reference", architecture, seed=2)
    rng = np.random.default_rng(3)
    sequences = [
        from_response(rng.integers(0, 300, 20), rng.integers(0, 300, int(n)))
        for n in rng.integers(150, 236, 24)
    ]
    want = oracle(sft, reference, sequences)
    preempted = count_preemptions(monkeypatch)
    tight = {
        "num_gpu_blocks_override": blocks,
        "scheduler_reserve_full_isl": False,
        "long_prefill_token_threshold": 32,
        "max_num_batched_tokens": 256,
    }
    with offline(sft, reference, **tight) as engine:
        got = engine.score(sequences)
    difference = largest_difference(got, want)
    say_difference(f"pair in vLLM, {architecture}: {len(preempted)} preemptions", difference)
    assert preempted, "the test must force what it tests"
    assert difference <= TOLERANCE


def count_preemptions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from vllm.v1.core.sched.scheduler import Scheduler

    preempted: list[str] = []
    preempt = Scheduler._preempt_request

    def counted(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        preempted.append(request.request_id)
        return preempt(self, request, *args, **kwargs)

    monkeypatch.setattr(Scheduler, "_preempt_request", counted)
    return preempted


def test_same_schedule_same_bits(pair_dirs: tuple[Path, Path]) -> None:
    """The same batch on the same cache state gives the same bits."""
    sequences = workload(300)
    with offline(*pair_dirs, **CHUNKED) as engine:
        engine.score(sequences)
        rounds = [engine.score(sequences) for _ in range(2)]
    assert largest_difference(*rounds) == 0.0


TEACHER = View(1 + 1 / 0.5, -1 / 0.5, top=5)


@pytest.mark.parametrize("rows", [(320, 320), (384, 320), (320, 384)], ids=str)
@pytest.mark.parametrize(
    "view", [View(1, 0, top=3), View(0, 1), TEACHER], ids=["sft", "reference", "dpr-teacher"]
)
def test_ranks_equal_transformers(
    view: View, rows: tuple[int, int], tmp_path: Path, say_difference: Callable[[str, float], None]
) -> None:
    """The scored tokens among the rows that both models have, in a batch whose other half is not ranked."""
    pair_dirs = (
        make_checkpoint(tmp_path / "sft", seed=1, vocab_size=rows[0]),
        make_checkpoint(tmp_path / "reference", seed=2, vocab_size=rows[1]),
    )
    sequences = workload(320)
    scorer = TransformersScorer(*pair_dirs, context_length=CONTEXT)
    scorer.load()
    from densepath.engine.vllm.pooler import TASK, pooling_params

    with offline(*pair_dirs, **CHUNKED) as engine:
        got = engine.score(sequences, view)
        mixed = engine.llm.encode(
            [{"prompt_token_ids": sequence.token_ids_L.tolist()} for sequence in sequences[:2]],
            pooling_params=[pooling_params(sequences[0].spans(), view), pooling_params(sequences[1].spans())],
            pooling_task=TASK,
            use_tqdm=False,
        )
    assert [output.outputs.data.shape[1] for output in mixed] == [4 + 2 * view.top, 2]
    difference = 0.0
    for scored, sequence in zip(got, sequences, strict=True):
        logp_T_V = view_by_hand(scorer, sequence, view)
        ranked = scored.ranked
        assert ranked is not None
        each = np.arange(len(logp_T_V))
        own_T = logp_T_V[each, sequence.scored_ids_T]
        difference = max(difference, float(np.abs(ranked.logp_T - own_T).max()))
        np.testing.assert_array_equal(ranked.logp_T, view_of(scored, view))
        # Two tokens closer than the engines' difference may stand in either order.
        closer = np.abs(logp_T_V - own_T[:, None]) < TOLERANCE * 10
        at_least_T = (logp_T_V >= own_T[:, None]).sum(1)
        assert (np.abs(ranked.rank_T - at_least_T) < closer.sum(1)).all()
        assert ranked.top_ids_T_K.shape == ranked.top_logp_T_K.shape == (len(own_T), view.top)
        named_T_K = np.take_along_axis(logp_T_V, ranked.top_ids_T_K, 1)
        best_T_K = -np.sort(-logp_T_V, 1)[:, : view.top]
        for want_T_K in (named_T_K, best_T_K):
            difference = max(difference, float(np.abs(ranked.top_logp_T_K - want_T_K).max(initial=0)))
    say_difference(f"ranked by {view.sft:g} sft {view.reference:+g} reference", difference)
    assert difference <= TOLERANCE * (abs(view.sft) + abs(view.reference))


def view_by_hand(scorer: TransformersScorer, sequence: Sequence, view: View) -> np.ndarray:
    """Weighted log-probabilities of the rows that both models have, float64 [T, V]."""
    import torch

    with torch.inference_mode():
        tables = [
            model(torch.from_numpy(sequence.token_ids_L)[None]).logits[0].double().log_softmax(-1).numpy()
            for model in scorer._models
        ]
    rows_T, shared = sequence.positions_T - 1, min(table.shape[1] for table in tables)
    sft_T_V, reference_T_V = (table[rows_T, :shared] for table in tables)
    return view.sft * sft_T_V + view.reference * reference_T_V


def view_of(scored: Scored, view: View) -> np.ndarray:
    if (view.sft, view.reference) == (1, 0):
        return scored.logp_sft_T
    if (view.sft, view.reference) == (0, 1):
        return scored.logp_reference_T
    parts = (np.float32(view.sft) * scored.logp_sft_T, np.float32(view.reference) * scored.logp_reference_T)
    return parts[0] + parts[1]
