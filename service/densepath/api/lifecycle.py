"""`Lifecycle`: what is served, whether it can answer, and the requests in flight."""

from __future__ import annotations

import asyncio
import enum
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import structlog

from densepath.api.served import Served
from densepath.api.watch import Watch
from densepath.engine.scorer import Scorer
from densepath.errors import DensepathError, DrainingError, EngineUnavailableError
from densepath.pair.pair import Pair
from densepath.telemetry.metrics import Metrics
from densepath.verification.start import Start
from densepath.verification.verdict import Verdict

#: The time between two looks at the engine.
LOOK_SECONDS = 0.5
#: After so long without a forward pass, an idle engine is probed.
IDLE_SECONDS = 10.0
#: So often an engine is replaced within the window. After that, the process ends.
RESTARTS, RESTART_WINDOW_SECONDS = 3, 3600.0
#: Largest Retry-After while an engine starts.
LONGEST_WAIT = 60

#: Makes an engine for a pair, not yet started, and says how it is started and verified.
MakeEngine = Callable[[Pair], tuple[Scorer, Start]]

log = structlog.get_logger()


class Phase(enum.Enum):
    """What the service can do at the moment. Only `ready` can score."""

    STARTING = "starting"  # the pair is being loaded
    VERIFYING = "verifying"  # its numbers are being compared with those of transformers
    READY = "ready"
    DEGRADED = "degraded"  # the engine died or hangs, and is being replaced
    DRAINING = "draining"  # the process ends: what is in flight is still answered
    DEAD = "dead"  # the process ends: only a new one helps


#: From each phase, those that may follow.
NEXT = {
    Phase.STARTING: {Phase.VERIFYING, Phase.DRAINING, Phase.DEAD},
    Phase.VERIFYING: {Phase.READY, Phase.DRAINING, Phase.DEAD},
    Phase.READY: {Phase.DEGRADED, Phase.DRAINING},
    Phase.DEGRADED: {Phase.READY, Phase.DRAINING, Phase.DEAD},
    Phase.DRAINING: set[Phase](),
    Phase.DEAD: set[Phase](),
}


class Lifecycle:
    """From the start of the engine to the last answer."""

    def __init__(
        self,
        served: Served,
        start_engine: Start,
        metrics: Metrics,
        *,
        make_engine: MakeEngine | None = None,
        hang_seconds: float = 120.0,
    ) -> None:
        """Without `make_engine`, an engine that is lost is not replaced."""
        self.served = served
        self.make_engine = make_engine
        self.in_flight = 0  # requests that are being answered, health probes left out
        self._answering: set[asyncio.Event] = set()  # each is set when its request is answered
        self.idle = asyncio.Event()
        self.idle.set()
        self.loaded = asyncio.Event()
        self.out_of_time = asyncio.Event()  # set when the drain bound is over
        self._phase = Phase.STARTING
        self._start_engine, self._metrics = start_engine, metrics
        self._hang_seconds = hang_seconds
        self._look_seconds = min(LOOK_SECONDS, hang_seconds / 8)
        self._idle_seconds = min(IDLE_SECONDS, hang_seconds / 4)
        self._start_seconds = 5.0  # what the last start took, once there was one
        self._lost_at = 0.0
        self._restarts: deque[float] = deque(maxlen=RESTARTS)
        self._watches: list[Watch] = []
        self._unwatched = 0
        metrics.engine_up.set_function(
            lambda: float(
                self._phase in (Phase.READY, Phase.DRAINING)
                and self.loaded.is_set()
                and self.served.scorer.alive()
            )
        )
        for phase in Phase:
            metrics.phase.labels(phase.value).set(float(phase is self._phase))

    @property
    def phase(self) -> Phase:
        """What the service can do at the moment."""
        return self._phase

    def enter(self, phase: Phase) -> None:
        """Change the phase: the only place where it changes."""
        if phase is self._phase:
            return
        if phase not in NEXT[self._phase]:
            raise RuntimeError(f"{phase.value} cannot follow {self._phase.value}")
        self._metrics.phase.labels(self._phase.value).set(0)
        self._metrics.phase.labels(phase.value).set(1)
        log.info("phase", phase=phase.value, before=self._phase.value)
        self._phase = phase

    async def run(self) -> None:
        """Start the engine, watch it, and replace it whenever it is lost. Never returns.

        Raises what `start` raises, and EngineUnavailableError when too many engines were lost.
        """
        await self.start()
        try:
            while True:
                await self._replace(await self._until_lost())
        finally:
            for watch in self._watches:
                await watch.end()

    async def start(self) -> None:
        """Load the pair and verify the engine; ready from then on.

        Raises InvalidPairError where the engine's numbers are not those of transformers, or where a file of
        the pair was changed since its check.
        """
        served = self.served
        try:
            verdict = await self._start(served.scorer, self._start_engine, served.pair)
        except Exception:
            if self._phase is not Phase.DRAINING:
                self.enter(Phase.DEAD)
            raise
        self.served = replace(served, verdict=verdict)
        self._metrics.show_verdict(served.model_name, served.pair.version, verdict)
        if self._phase is Phase.VERIFYING:
            self.enter(Phase.READY)
        self.loaded.set()
        self._say_ready()

    async def _start(self, scorer: Scorer, start: Start, pair: Pair) -> Verdict:
        def loaded() -> None:
            if self._phase is Phase.STARTING:
                self.enter(Phase.VERIFYING)

        begin = time.monotonic()
        verdict = await start(scorer, loaded)
        await asyncio.to_thread(pair.ensure_unchanged)
        self._start_seconds = time.monotonic() - begin
        return verdict

    def _say_ready(self) -> None:
        served = self.served
        log.info(
            "ready",
            model=served.model_name,
            model_version=served.pair.version,
            verified=served.verdict.verified,
            verification=served.verdict.line(),
        )

    def switch(self, served: Served) -> Served:
        """Serve this from now on. Its engine is started and verified.

        Returns what was served until now. Requests that took it keep it, so the caller closes its scorer, if
        it is another one, when they are answered. The watchdog and the metrics follow the new one. Raises
        DrainingError where the service is ending: the caller then closes the new scorer.
        """
        if self._phase is not Phase.READY:
            if self._phase is not Phase.DEGRADED:
                raise draining()
            self.enter(Phase.READY)
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
        match self._phase:
            case Phase.STARTING:
                return EngineUnavailableError("starting: the pair is being loaded", retry_after=5)
            case Phase.VERIFYING:
                return EngineUnavailableError("verifying: the engine is being verified", retry_after=5)
            case Phase.DRAINING:
                return draining()
            case Phase.DEAD:
                return EngineUnavailableError(
                    "dead: the engine cannot be started again, and this service is stopping: its log gives "
                    "the reason",
                    retry_after=30,
                )
            case Phase.READY if self.served.scorer.alive():
                return None
        waited = time.monotonic() - self._lost_at if self._phase is Phase.DEGRADED else 0.0
        return EngineUnavailableError(
            "degraded: the engine has died or hangs, and is being replaced",
            retry_after=max(1, min(LONGEST_WAIT, round(self._start_seconds - waited))),
        )

    def alive(self) -> bool:
        """False when only a restart of the process helps."""
        return self._phase is not Phase.DEAD

    @contextmanager
    def calling(self, scorer: Scorer) -> Iterator[None]:
        """A call of an engine, which is watched until it is over."""
        with self._watch(scorer).calling():
            yield

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Work in which the engine makes no step for long, such as loading other weights into it.

        Inside the block, a silent engine is not taken for a hanging one. The caller bounds the time.
        """
        self._unwatched += 1
        try:
            yield
        finally:
            self._unwatched -= 1
            for watch in self._watches:
                watch.silent_looks = 0

    def _watch(self, scorer: Scorer) -> Watch:
        for watch in self._watches:
            if watch.scorer is scorer:
                return watch
        self._watches.append(Watch(scorer))
        return self._watches[-1]

    async def _until_lost(self) -> str:
        """Return why the engine of what is served cannot answer any more, as soon as that is known."""
        hung, idle = (s / self._look_seconds for s in (self._hang_seconds, self._idle_seconds))
        while True:
            await asyncio.sleep(self._look_seconds)
            scorer = self.served.scorer
            self._watch(scorer)
            for watch in list(self._watches):
                watch.look()
                silent = watch.silent_looks >= hung and not self._unwatched
                if watch.scorer is scorer:
                    if not scorer.alive():
                        return "it has died"
                    if failure := watch.failure():
                        return f"it cannot score a short sequence: {failure}"
                    if silent:
                        return f"it made no forward pass for {self._hang_seconds:g} s while work was waiting"
                    if watch.idle_looks >= idle and not self._unwatched:
                        watch.probe()
                elif silent or watch.calls == 0:  # an engine of before
                    self._watches.remove(watch)
                    await watch.end()
                    if silent:
                        await watch.scorer.close()  # answers the calls that wait for it

    async def _replace(self, reason: str) -> None:
        """End the engine, which answers the calls that wait for it, and start another one for the same pair.

        Raises EngineUnavailableError when that was tried too often.
        """
        lost = self.served
        self.enter(Phase.DEGRADED)
        self._lost_at = time.monotonic()
        log.error("engine_lost", reason=reason)
        await lost.scorer.close()
        await self._watch(lost.scorer).end()
        self._watches = [watch for watch in self._watches if watch.scorer is not lost.scorer]
        while self.served is lost:
            if self.make_engine is None or self._spent():
                self.enter(Phase.DEAD)
                raise self.problem() or draining()
            self._restarts.append(time.monotonic())
            try:
                again = await self._make(lost, self.make_engine)
            except (DensepathError, OSError, TimeoutError) as error:
                self._metrics.engine_restarts.labels("failed").inc()
                log.error("engine_restart_failed", reason=str(error) or type(error).__name__)
                continue
            if self.served is not lost:  # another pair was switched to meanwhile
                await again.scorer.close()
                return
            self._metrics.engine_restarts.labels("ok").inc()
            self.switch(again)
            self._say_ready()

    def _spent(self) -> bool:
        """Whether as many engines as may be were started within the window."""
        full = len(self._restarts) == RESTARTS
        return full and time.monotonic() - self._restarts[0] < RESTART_WINDOW_SECONDS

    async def _make(self, lost: Served, make_engine: MakeEngine) -> Served:
        scorer, start = await asyncio.to_thread(make_engine, lost.pair)
        try:
            async with asyncio.timeout(self._hang_seconds + 3 * self._start_seconds):
                verdict = await self._start(scorer, start, lost.pair)
        except BaseException:
            await scorer.close()
            raise
        return replace(lost, scorer=scorer, verdict=verdict)

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
    return DrainingError("draining: the service is shutting down: ask another replica", retry_after=1)
