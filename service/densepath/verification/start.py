"""Starting an engine, and verifying it before it serves."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from densepath.config import Verify
from densepath.engine.scorer import Scored, Scorer
from densepath.errors import InvalidPairError
from densepath.files import cache_directory
from densepath.pair.pair import Pair
from densepath.pair.tensors import expected_tensors
from densepath.pair.weights import read_weights
from densepath.verification.compare import (
    FLOAT32,
    derive_limit,
    judge,
    largest_noise,
    score_rounds,
)
from densepath.verification.memory import combination, recall, remember
from densepath.verification.oracle import OracleAnswer, OracleError, OracleJob, TooSlowError, ask_oracle
from densepath.verification.probes import Probes
from densepath.verification.selftest import probes_of
from densepath.verification.verdict import Difference, Verdict, not_verified

#: How long transformers may take with `auto`. With `always` there is no limit.
AUTO_SECONDS = 600.0

#: Models of up to this size in float32 are computed by transformers while the engine starts.
BESIDE_BYTES = 2 << 30

Say = Callable[[str], None]


def _nothing() -> None:
    pass


class Start(Protocol):
    """Starts an engine, and reports whether its numbers are right."""

    def __call__(self, scorer: Scorer, loaded: Callable[[], None] = ..., /) -> Awaitable[Verdict]:
        """`loaded` is called when the engine has loaded the pair. Raises InvalidPairError if a number is
        wrong.
        """


def start_unverified(reason: str) -> Start:
    """Start an engine without comparing it with anything."""

    async def start(scorer: Scorer, loaded: Callable[[], None] = _nothing, /) -> Verdict:
        await scorer.start()
        loaded()
        return not_verified(reason)

    return start


@dataclass(frozen=True)
class Verifier:
    """A verified start of one pair in one engine."""

    pair: Pair
    arguments: Mapping[str, Any]  # of the engine
    device: str  # its name
    cuda: bool  # whether the engine takes a GPU
    verify: Verify
    say: Say
    reasons: Callable[[], AbstractContextManager[None]] = nullcontext  # gives the reason if the engine dies

    async def __call__(self, scorer: Scorer, loaded: Callable[[], None] = _nothing, /) -> Verdict:
        """Start the engine, and return the verdict: verified, or why it could not be compared."""
        folder = cache_directory("verified")
        key = combination(self.pair.version, self.arguments, self.device)
        if self.verify is Verify.AUTO and (known := recall(folder, key)) is not None:
            await scorer.start()
            loaded()
            return known
        verdict = await self._verify(scorer, loaded)
        if verdict.verified:
            await asyncio.to_thread(self.pair.ensure_unchanged)  # the verdict is stored for this version
            remember(folder, key, verdict)
        return verdict

    async def _verify(self, scorer: Scorer, loaded: Callable[[], None]) -> Verdict:
        probes = self.probes()
        self.say(
            f"verifying the engine against transformers: {len(probes.probes)} probes of {probes.tokens} "
            "tokens, once for this pair on this machine"
        )
        with self.reasons():
            return await self._run(scorer, probes, loaded)

    async def _run(self, scorer: Scorer, probes: Probes, loaded: Callable[[], None]) -> Verdict:
        begin = time.monotonic()
        dtypes = scorer.dtype, scorer.reference_dtype
        asked = asyncio.ensure_future(self._ask(probes, dtypes))
        try:
            if self.cuda or self._large():  # memory suffices for only one of the two at a time
                await asked
            await scorer.start()
            loaded()
            answer = await asked
        finally:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        rounds = await score_rounds(scorer, probes.probes)
        if isinstance(answer, str):
            verdict = replace(not_verified(answer), noise=largest_noise(rounds))
            self.say(verdict.line())
            return verdict
        verdict = _judge_pair(dtypes, probes, rounds, answer)
        self.say(f"{verdict.line()}; it took {time.monotonic() - begin:.1f} s, including the start")
        return verdict

    def _large(self) -> bool:
        return any(4 * parameters > BESIDE_BYTES for parameters in self._parameters())

    def _parameters(self) -> tuple[int, ...]:
        """The number of parameters of each model."""
        directories = (self.pair.sft, self.pair.reference)
        return tuple(
            count_parameters(directory, quantised=quantisation is not None)
            for directory, quantisation in zip(directories, self.pair.quantisations, strict=True)
        )

    def probes(self) -> Probes:
        """The sequences to verify with."""
        return probes_of(
            self.pair,
            context_length=self.arguments["max_model_len"],
            tokens_per_step=self.arguments["max_num_batched_tokens"],
        )

    async def _ask(self, probes: Probes, dtypes: tuple[str, str]) -> OracleAnswer | str:
        """Transformers' answer, or why there is none. Raises InvalidPairError if there must be one."""
        directories = (self.pair.sft, self.pair.reference)
        job = OracleJob(
            directories=tuple(map(str, directories)),
            parameters=self._parameters(),
            dtypes=tuple(tuple(dict.fromkeys((FLOAT32, dtype))) for dtype in dtypes),
            cuda=self.cuda,
            seconds=AUTO_SECONDS if self.verify is Verify.AUTO else None,
        )
        try:
            return await ask_oracle(job, [probe.sequence for probe in probes.probes])
        except OracleError as error:
            if self.verify is Verify.ALWAYS:
                raise InvalidPairError(
                    f"the engine cannot be verified, and --verify always requires it: {error}; --verify auto "
                    "would serve it unverified"
                ) from error
            hint = "; with --verify always there is no limit" if isinstance(error, TooSlowError) else ""
            return f"{error}{hint}"


def _judge_pair(
    dtypes: tuple[str, str], probes: Probes, rounds: Mapping[str, list[Scored]], answer: OracleAnswer
) -> Verdict:
    """The verdict on both models. Raises InvalidPairError if one is beyond its limit."""
    sft, reference = (
        {how: [getattr(scored, name) for scored in got] for how, got in rounds.items()}
        for name in ("logp_sft_T", "logp_reference_T")
    )
    want_sft, want_reference = (logp_T[FLOAT32] for logp_T in answer.models)
    limits = [derive_limit(dtype, logp_T) for dtype, logp_T in zip(dtypes, answer.models, strict=True)]
    reward_off = np.concatenate(
        [
            np.abs((scored.logp_sft_T - scored.logp_reference_T) - (a_T - b_T))
            for got in rounds.values()
            for scored, a_T, b_T in zip(got, want_sft, want_reference, strict=True)
        ]
    )
    return Verdict(
        verified=True,
        at=int(time.time()),
        against=f"transformers {version('transformers')} in float32 on the {answer.device}",
        sft=judge("sft", sft, want_sft, probes.probes, limits[0]),
        reference=judge("reference", reference, want_reference, probes.probes, limits[1]),
        reward=Difference(float(reward_off.max()), float(reward_off.mean())),
        limit=limits[0].largest,
        reference_limit=limits[1].largest,
        noise=largest_noise(rounds),
        probes=len(probes.probes),
        tokens=probes.tokens,
        left_out=probes.left_out,
    )


def count_parameters(directory: Path, *, quantised: bool) -> int:
    """The number of elements of all tensors of a checkpoint, from the headers of its files.

    Quantised weights may be packed. So their number is that of the model that transformers builds.
    """
    if quantised:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        if expected := expected_tensors(config, config.architectures[0]):
            return sum(math.prod(shape) for shape in expected.shapes.values())
    files = read_weights(directory, lambda *_: None).values()
    return sum(math.prod(tensor.shape) for tensors in files for tensor in tensors.values())
