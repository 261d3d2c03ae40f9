"""The pair of one architecture as the service takes it: checked, started, verified. Then it is compared."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence as ListLike
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from architectures.outcomes import LIMIT, Outcome
from architectures.specimen import Specimen, make_config
from architectures.zoo import ZOO
from checkpoints import write_checkpoint
from densepath.config import EngineOptions, Verify
from densepath.engine.scorer import Scored, View
from densepath.engine.transformers import TransformersScorer
from densepath.engine.vllm.arguments import engine_arguments
from densepath.engine.vllm.engine import OfflineVllm
from densepath.engine.vllm.reasons import reasons, record
from densepath.errors import DensepathError, EngineUnavailableError
from densepath.pair.pair import Pair, inspect_pair
from densepath.pair.text_half import text_half
from densepath.sequences import Sequence, from_mask, from_response
from densepath.verification import start as verified_start
from densepath.verification.oracle import OracleAnswer, OracleJob
from whole_models import make_whole_model

#: Chunks of 64 tokens cut every long sequence; three sequences run at once.
CHUNKED = {"max_num_batched_tokens": 64, "max_num_seqs": 3}


def judge(name: str, folder: Path) -> Outcome:
    """What comes of a pair of this architecture, made in `folder`."""
    sft, reference = (
        make(ZOO[name], folder / side, seed) for seed, side in enumerate(("sft", "reference"), start=1)
    )
    pair = inspect_pair(sft, reference, cache_dir=folder)
    if not isinstance(pair, Pair):
        return Outcome("refused", None, f"{pair[0].file}: {pair[0].message}")
    oracle = TransformersScorer(sft, reference, context_length=pair.context_length)
    oracle.load()
    # Before the engine starts: vLLM changes the classes of transformers in the process that it runs in.
    want = [oracle.score_now(sequence) for sequence in workload(pair)]
    engine = InProcess(pair)
    try:
        verdict = asyncio.run(start_verified(pair, engine, oracle))
    except DensepathError as error:
        return Outcome("refused", largest_difference(pair, engine, want), error.message)
    difference = largest_difference(pair, engine, want)
    if not verdict.verified:
        return Outcome("broken", difference, verdict.line())
    if difference is None or not difference <= LIMIT:
        return Outcome("wrong", difference, "the verified start let it pass")
    fixed = ZOO[name].fixed
    return Outcome("fixed" if fixed else "equal", difference, fixed)


def make(specimen: Specimen, directory: Path, seed: int) -> Path:
    """A random checkpoint, as the service takes it."""
    if not specimen.whole:
        return write_checkpoint(directory, make_config(specimen), seed=seed)
    whole = make_whole_model(directory, specimen.model_type, seed=seed)
    with patch.dict(os.environ, {"XDG_CACHE_HOME": str(directory.parent)}):
        return text_half(whole, lambda line: None)


async def start_verified(pair: Pair, engine: InProcess, oracle: TransformersScorer) -> verified_start.Verdict:
    """The service's own verified start, but that engine and transformers are both in this process."""

    async def answer_here(job: OracleJob, sequences: ListLike[Sequence]) -> OracleAnswer:
        scored = [oracle.score_now(sequence) for sequence in sequences]
        models = ([each.logp_sft_T for each in scored], [each.logp_reference_T for each in scored])
        return OracleAnswer(tuple({"float32": logp_N_T} for logp_N_T in models), "cpu", 0.0)

    verifier = verified_start.Verifier(
        pair=pair,
        arguments=engine.arguments,
        device="cpu",
        cuda=True,  # as there, transformers has answered before the engine starts
        verify=Verify.ALWAYS,
        say=lambda line: None,
        reasons=reasons,
    )
    with (
        patch.object(verified_start, "ask_oracle", answer_here),
        patch.object(verified_start, "remember", lambda *_: None),
    ):
        return await verifier(engine)


class InProcess:
    """A `Scorer` whose engine runs in this process. What is asked for at once runs as one batch."""

    def __init__(self, pair: Pair) -> None:
        self.context_length = pair.context_length
        self.dtype, self.reference_dtype = pair.dtype, pair.reference_dtype
        self.arguments = engine_arguments(
            pair.sft,
            pair.reference,
            checkpoint_dtype=pair.dtype,
            context_length=pair.context_length,
            options=EngineOptions(kv_cache_memory_bytes=64 << 20),
        )
        self.arguments |= CHUNKED
        self.engine: OfflineVllm | None = None
        self._waiting: list[tuple[Sequence, bool, asyncio.Future[Scored]]] = []

    async def start(self) -> None:
        with reasons():
            self.engine = OfflineVllm(self.arguments)

    async def score(self, sequence: Sequence, view: View | None = None, *, cold: bool = False) -> Scored:
        answer: asyncio.Future[Scored] = asyncio.get_running_loop().create_future()
        self._waiting.append((sequence, cold, answer))
        await asyncio.sleep(0)  # whoever else asks now is in the same batch
        if self._waiting:
            batch, self._waiting = self._waiting, []
            scored = self.score_now([each for each, _, _ in batch], cold=cold)
            for (_, _, future), one in zip(batch, scored, strict=True):
                future.set_result(one)
        return await answer

    def score_now(self, sequences: list[Sequence], *, cold: bool = False) -> list[Scored]:
        """Score all as one batch. An engine that fails is gone, as the service's is."""
        try:
            if self.engine is not None:
                return self.engine.score(sequences, cold=cold)
        except Exception as error:
            self.engine = None
            record(error)  # as the service's engine process does
            raise EngineUnavailableError("the engine is not running", retry_after=0) from error
        raise EngineUnavailableError("the engine is not running", retry_after=0)

    def alive(self) -> bool:
        return self.engine is not None

    async def close(self) -> None:
        """The process ends."""


def largest_difference(pair: Pair, engine: InProcess, want: list[Scored]) -> float | None:
    """In nats, over all tokens of both models, cold and from the cache; None where nothing is scored."""
    if not engine.alive():
        return None
    sequences = workload(pair)
    rounds = [
        engine.score_now(sequences, cold=True),
        engine.score_now(sequences),
        engine.score_now(sequences),
    ]
    off = [
        np.abs(a - b).max()
        for got in rounds
        for g, w in zip(got, want, strict=True)
        for a, b in ((g.logp_sft_T, w.logp_sft_T), (g.logp_reference_T, w.logp_reference_T))
    ]
    return float(np.max(off))


def workload(pair: Pair) -> list[Sequence]:
    """Ragged sequences, rollouts of shared prompts, masks with holes, both sides of edges, the longest."""
    rng = np.random.default_rng(7)

    def ids(n: int) -> Any:
        return rng.integers(0, pair.embedding_size, n)

    ragged = [from_response(ids(1 + i * 17 % 90), ids(1 + i * 29 % 140)) for i in range(8)]
    prompts = [ids(100), ids(65), ids(64)]
    rollouts = [from_response(prompt, ids(5 + 11 * k)) for prompt in prompts for k in range(3)]
    # The same prompt with its last tokens scored: the cache hit must end before the first of them.
    earlier = [from_response(prompt[: len(prompt) // 2], prompt[len(prompt) // 2 :]) for prompt in prompts]
    masks = [from_mask(ids(n), np.arange(n) % 7 > 3) for n in (30, 129, 200)]
    edges = [from_response(ids(a), ids(b)) for a, b in ((1, 1), (1, 255), (256, 1), (200, 200))]
    longest = [from_response(ids(pair.context_length - n), ids(n)) for n in (1, pair.context_length // 2)]
    return [*ragged, *rollouts, *earlier, *masks, *edges, *longest]
