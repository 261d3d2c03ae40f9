"""`VllmScorer`: the pair in vLLM's own engine process, under concurrency, cancellation and death."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from checkpoints import make_checkpoint
from densepath.errors import EngineUnavailableError

from .test_vllm_pair import TOLERANCE, largest_difference, oracle, tiny_arguments, workload

pytestmark = pytest.mark.engine


async def started(sft: Path, reference: Path, tensor_parallel_size: int = 1) -> Any:
    from densepath.engine.vllm.engine import VllmScorer

    scorer = VllmScorer(tiny_arguments(sft, reference, tensor_parallel_size=tensor_parallel_size))
    await scorer.start()
    return scorer


async def test_concurrent_cancelled_and_killed(
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
    """Tensor parallelism passes through to both models; on a CPU the workers talk by gloo."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    sft = make_checkpoint(tmp_path / "sft", "qwen3", seed=1)
    reference = make_checkpoint(tmp_path / "reference", "llama", seed=2)
    sequences = workload(300)
    scorer = await started(sft, reference, tensor_parallel_size=2)
    try:
        got = await asyncio.gather(*map(scorer.score, sequences))
    finally:
        await scorer.close()
    difference = largest_difference(got, oracle(sft, reference, sequences))
    say_difference("engine process, tensor parallel size 2, qwen3 with llama", difference)
    assert difference <= TOLERANCE
