"""`VllmScorer`: the pair in vLLM's own engine process, under concurrency, cancellation and death."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from rich.console import Console

from adapters import make_adapter
from architectures.specimen import make_config
from architectures.zoo import ZOO
from checkpoints import make_checkpoint, write_checkpoint
from damage import change_tensors
from densepath.commands.pairs import directories
from densepath.config import EngineOptions, PairSettings
from densepath.engine.scorer import Scored
from densepath.engine.vllm.arguments import engine_arguments
from densepath.errors import EngineUnavailableError
from densepath.pair.pair import load_pair
from densepath.pair.text_half import text_half
from densepath.sequences import Sequence
from quantised import quantise
from whole_models import make_whole_model

from .test_hybrids import TOLERANCE as HYBRIDS
from .test_vllm_pair import CONTEXT, TOLERANCE, largest_difference, oracle, workload

pytestmark = pytest.mark.engine


async def started(
    sft: Path, reference: Path, *, dtypes: tuple[str, str] = ("float32", "float32"), workers: int = 1
) -> Any:
    from densepath.engine.vllm.engine import VllmScorer

    scorer = VllmScorer(
        engine_arguments(
            sft,
            reference,
            checkpoint_dtype=dtypes[0],
            reference_dtype=dtypes[1],
            context_length=CONTEXT,
            options=EngineOptions(kv_cache_memory_bytes=32 << 20, tensor_parallel_size=workers),
        )
    )
    await scorer.start()
    return scorer


async def score_with_two_workers(
    sft: Path, reference: Path, sequences: list[Sequence], **options: Any
) -> list[Scored]:
    scorer = await started(sft, reference, workers=2, **options)
    try:
        return await asyncio.gather(*map(scorer.score, sequences))
    finally:
        await scorer.close()


async def test_rows_05_06_20_concurrent_cancelled_and_killed(
    pair_dirs: tuple[Path, Path], say_difference: Callable[[str, float], None]
) -> None:
    """One engine, three lives: all at once, with half of the calls cancelled, and killed."""
    sequences = workload(300)
    want = oracle(*pair_dirs, sequences)
    scorer = await started(*pair_dirs)
    try:
        together = await asyncio.gather(*map(scorer.score, sequences))
        tasks = [asyncio.ensure_future(scorer.score(sequence)) for sequence in sequences]
        await asyncio.sleep(0.02)  # into the work, so that some are running when they are cancelled
        for task in tasks[::2]:
            task.cancel()
        survivors = await asyncio.gather(*tasks, return_exceptions=True)
        cancelled = sum(isinstance(result, asyncio.CancelledError) for result in survivors)
        kept = [(r, w) for r, w in zip(survivors, want, strict=True) if not isinstance(r, BaseException)]
        again = await asyncio.gather(*map(scorer.score, sequences))
        difference = max(
            largest_difference(together, want),
            largest_difference(*map(list, zip(*kept, strict=True))),
            largest_difference(again, want),
        )
        say_difference(f"engine process, concurrent, {cancelled} cancelled, and again", difference)
        assert cancelled > 0
        assert difference <= TOLERANCE

        # A direct child: those of services that other tests have started are further down.
        core = next(p for p in psutil.Process().children() if "EngineCore" in " ".join(p.cmdline()))
        waiting = [asyncio.ensure_future(scorer.score(sequence)) for sequence in sequences]
        os.kill(core.pid, signal.SIGKILL)
        results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), timeout=30)
        dead = [result for result in results if isinstance(result, EngineUnavailableError)]
        assert dead, "who waits for a dead engine is told so"
        assert not scorer.alive()
        with pytest.raises(EngineUnavailableError):
            await scorer.score(sequences[0])
    finally:
        await scorer.close()
    assert scorer.alive() is False


async def test_two_workers_share_each_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say_difference: Callable[[str, float], None]
) -> None:
    """Tensor parallelism passes through to both models; on a CPU the workers talk by gloo.

    The sft is an adapter on the text half of a model of text and images, and the reference has odd names.
    """
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    whole = make_whole_model(tmp_path / "whole", "qwen3_vl", seed=1)
    adapter = make_adapter(tmp_path / "adapter", text_half(whole, print), r=4)
    llama = make_checkpoint(tmp_path / "llama", "llama", seed=2)
    odd = make_checkpoint(tmp_path / "odd", "llama", seed=2)
    change_tensors(wrap)(odd)
    settings = PairSettings(sft=str(adapter), base=str(whole), reference=str(odd), fix_names=True)
    sft, reference = directories(settings, Console(stderr=True))
    load_pair(sft, reference)  # or it says why they are none
    sequences = workload(300)
    got = await score_with_two_workers(sft, reference, sequences)
    difference = largest_difference(got, oracle(sft, llama, sequences))
    say_difference(
        "engine process, tensor parallel size 2, merged adapter with renamed reference", difference
    )
    assert difference <= TOLERANCE


@pytest.mark.skipif(not torch.cpu._is_avx512_supported(), reason="4-bit kernels need AVX-512")
async def test_two_workers_share_a_quantised_model_and_one_in_another_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say_difference: Callable[[str, float], None]
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    plain = make_checkpoint(tmp_path / "plain", seed=1, hidden_size=128, dtype=torch.bfloat16)
    reference = make_checkpoint(tmp_path / "reference", seed=2)
    sft, dequantised = quantise(plain, tmp_path, "compressed-tensors W4A16")
    sequences = workload(300)
    got = await score_with_two_workers(sft, reference, sequences, dtypes=("bfloat16", "float32"))
    want = oracle(dequantised, reference, sequences)
    off_T = np.concatenate([abs(g.logp_sft_T - w.logp_sft_T) for g, w in zip(got, want, strict=True)])
    beside_T = np.concatenate(
        [abs(g.logp_reference_T - w.logp_reference_T) for g, w in zip(got, want, strict=True)]
    )
    say_difference("tensor parallel size 2, W4A16 in bfloat16, mean", float(off_T.mean()))
    say_difference("tensor parallel size 2, the float32 reference beside it", float(beside_T.max()))
    assert off_T.mean() < 0.05
    assert beside_T.max() <= TOLERANCE


async def test_two_workers_share_the_states_of_hybrids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say_difference: Callable[[str, float], None]
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    config = make_config(ZOO["Qwen3.5"])
    sft, reference = (
        write_checkpoint(tmp_path / side, config, seed=seed)
        for seed, side in enumerate(("sft", "reference"), start=1)
    )
    sequences = workload(300)
    got = await score_with_two_workers(sft, reference, sequences)
    difference = largest_difference(got, oracle(sft, reference, sequences))
    say_difference("tensor parallel size 2, Qwen3.5", difference)
    assert difference <= HYBRIDS["Qwen3.5"]


def wrap(tensors: dict[str, torch.Tensor]) -> None:
    """As DDP and torch.compile do."""
    for name in list(tensors):
        tensors[f"module._orig_mod.{name}"] = tensors.pop(name)
