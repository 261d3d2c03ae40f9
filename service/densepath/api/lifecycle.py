"""`Lifecycle`: what is served, whether it can answer, and the requests in flight."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import structlog

from densepath.api.served import Served
from densepath.engine.scorer import engine_died
from densepath.errors import DrainingError, EngineUnavailableError
from densepath.telemetry.metrics import Metrics
from densepath.verification.start import Start

#: The time between two looks at the engine.
LOOK_SECONDS = 0.5

log = structlog.get_logger()


class Phase(enum.Enum):
    """starting → ready → draining. An engine that has died is looked for beside it."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Lifecycle:
    """From the start of the engine to the last answer."""

    def __init__(self, served: Served, start_engine: Start, metrics: Metrics) -> None:
        self.served = served
        self.phase = Phase.STARTING
        self.in_flight = 0  # requests that are being answered, health probes left out
        self._answering: set[asyncio.Event] = set()  # each is set when its request is answered
        self.idle = asyncio.Event()
        self.idle.set()
        self.loaded = asyncio.Event()
        self.out_of_time = asyncio.Event()  # set when the drain bound is over
        self._start_engine, self._metrics = start_engine, metrics
        metrics.engine_up.set_function(
            lambda: float(self.phase is not Phase.STARTING and self.served.scorer.alive())
        )

    async def start(self) -> None:
        """Load the pair and verify the engine; ready from then on.

        Raises InvalidPairError where the engine's numbers are not those of transformers, or where a file of
        the pair was changed since its check.
        """
        pair = self.served.pair
        verdict = await self._start_engine(self.served.scorer)
        await asyncio.to_thread(pair.ensure_unchanged)
        self.served = replace(self.served, verdict=verdict)
        self._metrics.show_verdict(self.served.model_name, pair.version, verdict)
        if self.phase is Phase.STARTING:
            self.phase = Phase.READY
        self.loaded.set()
        log.info(
            "ready",
            model=self.served.model_name,
            model_version=pair.version,
            verified=verdict.verified,
            verification=verdict.line(),
        )

    def switch(self, served: Served) -> Served:
        """Serve this from now on. Its engine is started and verified.

        Returns what was served until now. Requests that took it keep it, so the caller closes its scorer, if
        it is another one, when they are answered. `died()` and the metrics follow the new one. Raises
        DrainingError where the service is shutting down: the caller then closes the new scorer.
        """
        if self.phase is Phase.DRAINING:
            raise draining()
        old, self.served = self.served, served
        self._metrics.show_verdict(served.model_name, served.pair.version, served.verdict)
        return old

    def take(self) -> Served:
        """What a request is scored by. Raises EngineUnavailableError or DrainingError where nothing is."""
        if problem := self.problem():
            raise problem
        return self.served

    def problem(self) -> EngineUnavailableError | DrainingError | None:
        """Why nothing can be scored at the moment, or None."""
        if self.phase is Phase.STARTING:
            return EngineUnavailableError("the pair is being loaded and verified", retry_after=5)
        if self.phase is Phase.DRAINING:
            return draining()
        return None if self.served.scorer.alive() else engine_died()

    def alive(self) -> bool:
        """False when only a restart helps."""
        return self.phase is Phase.STARTING or self.served.scorer.alive()

    async def died(self) -> None:
        """Return when the engine of what is served is gone. The engine may change meanwhile."""
        await self.loaded.wait()
        while (scorer := self.served.scorer).alive():
            end = asyncio.ensure_future(scorer.died())
            try:
                while self.served.scorer is scorer and not end.done():
                    await asyncio.wait({end}, timeout=LOOK_SECONDS)
            finally:
                end.cancel()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a request while it is being answered."""
        self.in_flight += 1
        self.idle.clear()
        self._answering.add(end := asyncio.Event())
        try:
            yield
        finally:
            self._answering.remove(end)
            end.set()
            self.in_flight -= 1
            if self.in_flight == 0:
                self.idle.set()

    async def answered(self) -> None:
        """Return when every request that is being answered now has been answered."""
        for end in tuple(self._answering):
            await end.wait()


def draining() -> DrainingError:
    """The error of a request that comes, or is still waiting, while the service ends."""
    return DrainingError("the service is shutting down: ask another replica", retry_after=1)
