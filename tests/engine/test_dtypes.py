"""Each model is computed in the dtype of its own checkpoint, as transformers computes it in that dtype."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints import make_checkpoint
from densepath.config import EngineOptions
from densepath.engine.scorer import Scored
from densepath.engine.transformers import load_model, logprobs_over_vocabulary
from densepath.engine.vllm.arguments import engine_arguments
from densepath.pair.pair import load_pair
from densepath.sequences import Sequence

from .in_process import start_offline
from .test_verification import verified
from .test_vllm_pair import CHUNKED, CONTEXT, TOLERANCE, workload

pytestmark = pytest.mark.engine

Columns = list[np.ndarray[Any, np.dtype[np.float32]]]


def transformers_logp(directory: Path, dtype: str, sequences: list[Sequence]) -> Columns:
    """Log-probabilities of the scored tokens, computed by transformers in `dtype`."""
    model = load_model(directory, dtype=dtype)
    columns = []
    with torch.inference_mode():
        for sequence in sequences:
            logp_T_V = logprobs_over_vocabulary(model, sequence)
            columns.append(logp_T_V.gather(1, torch.from_numpy(sequence.scored_ids_T)[:, None])[:, 0].numpy())
    return columns


def off(got: Columns, want: Columns) -> np.ndarray[Any, Any]:
    return np.concatenate([np.abs(a - b) for a, b in zip(got, want, strict=True)])


# Windows on some layers: pages of two sizes in each of two groups of the cache.
@pytest.mark.parametrize(
    ("architecture", "dtypes"),
    [("llama", ("bfloat16", "float32")), ("gemma3", ("float32", "bfloat16"))],
    ids=["bf16 with fp32", "fp32 with bf16, windows"],
)
def test_two_dtypes_in_one_engine(
    architecture: Any, dtypes: tuple[str, str], tmp_path: Path, say_difference: Callable[[str, float], None]
) -> None:
    sft, reference = (
        make_checkpoint(tmp_path / side, architecture, seed=seed, dtype=getattr(torch, dtype))
        for seed, (side, dtype) in enumerate(zip(("sft", "reference"), dtypes, strict=True))
    )
    pair = load_pair(sft, reference, cache_dir=tmp_path / "cache")
    sequences = workload(pair.embedding_size)
    arguments = engine_arguments(
        sft,
        reference,
        checkpoint_dtype=pair.dtype,
        reference_dtype=pair.reference_dtype,
        context_length=CONTEXT,
        options=EngineOptions(kv_cache_memory_bytes=32 << 20),
    )
    exact = [transformers_logp(side, "float32", sequences) for side in (sft, reference)]
    own = [transformers_logp(d, dtype, sequences) for d, dtype in zip((sft, reference), dtypes, strict=True)]
    engine = start_offline(arguments | CHUNKED)
    try:
        rounds: list[list[Scored]] = [engine.score(sequences), engine.score(sequences)]
    finally:
        engine.close()
    assert sum(scored.cached_tokens for scored in rounds[1]) > 0, "the prompts of the second round are cached"
    for side, (name, dtype) in enumerate(zip(("logp_sft_T", "logp_reference_T"), dtypes, strict=True)):
        cold, warm = ([getattr(scored, name) for scored in got] for got in rounds)
        off_T = np.concatenate([off(cold, exact[side]), off(warm, exact[side])])
        noise_T = off(own[side], exact[side])
        say_difference(f"pair in two dtypes, {architecture}, the {dtype} model", off_T.max())
        if dtype == "float32":
            assert off_T.max() <= TOLERANCE, "the 16-bit model adds no noise to the other"
            continue
        say_difference(f"pair in two dtypes, {architecture}, the {dtype} model, mean", off_T.mean())
        say_difference(f"transformers in {dtype}, {architecture}, mean", noise_T.mean())
        assert off_T.max() <= 3 * noise_T.max()
        assert noise_T.mean() / 4 < off_T.mean() <= 2 * noise_T.mean(), "it is computed in 16 bits"


async def test_a_verified_start_holds_each_model_to_its_own_dtype(tmp_path: Path) -> None:
    sft = make_checkpoint(tmp_path / "sft", seed=1, dtype=torch.float16)
    reference = make_checkpoint(tmp_path / "reference", seed=2)
    verdict = await verified(load_pair(sft, reference, cache_dir=tmp_path / "cache"))
    assert verdict.verified
    assert verdict.limit is not None
    assert verdict.limit > 2e-3
    assert verdict.reference_limit == 1e-3
    assert verdict.reference is not None
    assert verdict.reference.largest < TOLERANCE
