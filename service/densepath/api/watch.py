"""`Watch`: whether one engine makes progress, from the evidence of its forward passes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from densepath.engine.scorer import Scorer
from densepath.sequences import Sequence, as_ids


class Watch:
    """Counts looks at one engine, and not the time of a clock.

    So a service that was stopped for a while, or whose event loop was blocked, does not take its engine for a
    hanging one.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.calls = 0  # that wait for the engine
        self.silent_looks = 0  # in a row without a forward pass, while a call was unanswered
        self.idle_looks = 0  # in a row without a forward pass, while none was
        self._unanswered = False  # also by the calls that were cancelled since
        self._steps = scorer.steps
        self._probe: asyncio.Task[None] | None = None

    @contextmanager
    def calling(self) -> Iterator[None]:
        """A call of the engine."""
        self.calls += 1
        self._unanswered = True
        try:
            yield
        except Exception:  # an answer, though no forward pass: the next probe shows whether there can be one
            self._unanswered = self.calls > 1
            raise
        finally:
            self.calls -= 1

    def look(self) -> None:
        """Compare with the last look."""
        if self.scorer.steps != self._steps:
            self._steps = self.scorer.steps
            self.silent_looks = self.idle_looks = 0
            self._unanswered = self.calls > 0
        elif self._unanswered:
            self.silent_looks += 1
        else:
            self.idle_looks += 1

    def probe(self) -> None:
        """Score one short sequence with both models, unless this is being done."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.ensure_future(self._score())

    async def _score(self) -> None:
        with self.calling():
            await self.scorer.score(Sequence(as_ids([0, 1]), np.array([1])), cold=True)

    def failure(self) -> BaseException | None:
        """What the last probe raised."""
        if self._probe is None or not self._probe.done() or self._probe.cancelled():
            return None
        return self._probe.exception()

    async def end(self) -> None:
        """Stop probing."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)
