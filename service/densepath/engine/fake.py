"""An engine without models: log-probabilities from a hash, and a switch for each fault.

With it, tests of the whole service take milliseconds, and `densepath serve --engine fake` lets you develop a
client without a model. Its numbers mean nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from densepath.engine.scorer import Ranked, Scored, View, engine_lost
from densepath.errors import InternalError
from densepath.sequences import Sequence

Float32 = NDArray[np.float32]


@dataclass
class FakeScorer:
    """Deterministic: a score depends only on the ids and positions of the sequence."""

    context_length: int = 4096
    gate: asyncio.Event | None = None  # a score waits until it is set
    non_finite_after_id: int | None = None  # a sequence that holds this id scores NaN
    raise_on_id: int | None = None  # a sequence that holds this id raises
    dead: bool = False
    scored: int = 0
    cancelled: int = 0
    steps: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)  # the first score has begun
    dtype: str = "float32"
    reference_dtype: str = "float32"

    async def start(self) -> None:
        """Nothing to load."""

    async def score(self, sequence: Sequence, view: View | None = None, *, cold: bool = False) -> Scored:
        """Pseudo log-probabilities in (-8, 0). `cold` makes no difference."""
        self.started.set()
        try:
            if self.gate is not None and not self.gate.is_set():
                await self._until_open(self.gate)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.dead or self.ended.is_set():
            raise engine_lost()
        self.steps += 1
        if self.raise_on_id is not None and self.raise_on_id in sequence.token_ids_L:
            raise InternalError("the engine failed on this sequence")
        self.scored += 1
        sft_T, reference_T = (self._pseudo(sequence, salt) for salt in (1, 2))
        if self.non_finite_after_id is not None and self.non_finite_after_id in sequence.token_ids_L:
            sft_T[-1] = np.nan
        ranked = None if view is None else self._ranked(sequence, sft_T, reference_T, view)
        return Scored(sft_T, reference_T, cached_tokens=0, ranked=ranked)

    async def _until_open(self, gate: asyncio.Event) -> None:
        ends = [asyncio.ensure_future(event.wait()) for event in (gate, self.ended)]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    @staticmethod
    def _pseudo(sequence: Sequence, salt: int) -> Float32:
        prefix_L = np.cumsum(sequence.token_ids_L * 2654435761 + salt * 40503) % 65521
        return (-8.0 * (prefix_L[sequence.positions_T] + 1) / 65522).astype(np.float32)

    @staticmethod
    def _ranked(sequence: Sequence, sft_T: Float32, reference_T: Float32, view: View) -> Ranked:
        """Every scored token is the most likely one. The ids below it follow, each one nat less likely."""
        logp_T = (view.sft * sft_T + view.reference * reference_T).astype(np.float32)
        below_K = np.arange(view.top)
        return Ranked(
            logp_T,
            np.ones(len(logp_T), np.int64),
            np.abs(sequence.scored_ids_T[:, None] - below_K),
            (logp_T[:, None] - below_K).astype(np.float32),
        )

    def alive(self) -> bool:
        """False once `dead` is switched on, or once it is closed."""
        return not (self.dead or self.ended.is_set())

    async def died(self) -> None:
        """Return once it is not alive."""
        while self.alive():  # noqa: ASYNC110  # a test switches it on from any thread
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Calls that wait raise EngineUnavailableError. Nothing to free."""
        self.ended.set()
