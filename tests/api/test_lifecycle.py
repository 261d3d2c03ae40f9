"""The readiness machine: a walk through all its phases on a virtual clock, and each fault alone."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from api.bodies import GOOD
from api.running import CONTEXT_LENGTH, expected_rewards, make_service
from api.virtual import VirtualLoop
from densepath.api.app import create_app
from densepath.api.lifecycle import RESTARTS, Phase
from densepath.api.server import _drain
from densepath.engine.fake import FakeScorer
from densepath.engine.scorer import Scored, View
from densepath.errors import EngineUnavailableError, InvalidPairError
from densepath.pair.pair import Pair
from densepath.sequences import Sequence
from densepath.verification.verdict import not_verified

HANG = 120.0
IDLE = 10.0
SLACK = 3.0  # some looks


@dataclass
class Engine(FakeScorer):
    """The fake engine, which knows when it last made a step. While `gate` is not set, it hangs."""

    verified: bool = False
    last_step: float = 0.0
    breaks: bool = False

    async def score(self, sequence: Sequence, view: View | None = None, *, cold: bool = False) -> Scored:
        """Score, and remember when."""
        if self.breaks:
            raise RuntimeError("a kernel failed")
        scored = await super().score(sequence, view, cold=cold)
        self.last_step = asyncio.get_running_loop().time()
        return scored


class World:
    """A service on a virtual clock, in one process, with engines that fail when told to."""

    def __init__(self, pair: Pair) -> None:
        self.loop = VirtualLoop()
        self.made: list[Engine] = []
        self.failures: list[str] = []  # of the next starts
        self.answers: dict[int, list[httpx.Response]] = {}
        self.asked_at: dict[int, float] = {}
        self.tasks: list[asyncio.Future[None]] = []
        self.run: asyncio.Future[None] | None = None
        self.loading: asyncio.Event | None = None
        self._pair, self._ids = pair, itertools.count()
        self.do(self._build)

    async def _build(self) -> None:
        engine, start = self.make(self._pair)
        self.service = make_service(self._pair, scorer=engine, start=start, make_engine=self.make)
        self.lifecycle = self.service.lifecycle
        transport = httpx.ASGITransport(create_app(self.service, engine="fake"))
        self.client = httpx.AsyncClient(base_url="http://x", transport=transport)

    def make(self, _: Pair) -> tuple[Engine, Any]:
        """As `Service.make_engine`."""
        engine = Engine(CONTEXT_LENGTH, gate=asyncio.Event())
        assert engine.gate is not None
        engine.gate.set()
        self.made.append(engine)

        async def start(scorer: Any, loaded: Callable[[], None]) -> Any:
            failure = self.failures.pop(0) if self.failures else None
            if failure == "slow":
                await asyncio.sleep(5)
            if failure == "never":
                await asyncio.Event().wait()
            if failure == "load":
                raise EngineUnavailableError("there is no memory")
            loaded()
            await asyncio.sleep(1)
            if failure == "verify":
                raise InvalidPairError("another number")
            scorer.verified, scorer.last_step = True, self.loop.time()
            return not_verified("a test")

        return engine, start

    def do(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return self.loop.run_until_complete(work())

    def wait(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def begin(self) -> None:
        """As `serve` does."""
        self.run = asyncio.ensure_future(self.lifecycle.run(), loop=self.loop)
        self.wait(0)

    def ready(self) -> None:
        self.begin()
        self.wait(2)
        assert self.phase is Phase.READY

    @property
    def phase(self) -> Phase:
        return self.lifecycle.phase

    @property
    def engine(self) -> Engine:
        scorer = self.lifecycle.served.scorer
        assert isinstance(scorer, Engine)
        return scorer

    def hang(self) -> None:
        assert self.engine.gate is not None
        self.engine.gate.clear()

    def ask(self, **headers: str) -> int:
        """A request, on its way."""
        number = next(self._ids)
        self.answers[number], self.asked_at[number] = [], self.loop.time()

        async def post() -> None:
            self.answers[number].append(
                await self.client.post("/v1/rewards", json={"items": [GOOD]}, headers=headers)
            )

        self.tasks.append(asyncio.ensure_future(post(), loop=self.loop))
        self.wait(0.01)
        return number

    def get(self, path: str) -> httpx.Response:
        answer: httpx.Response = self.do(lambda: self.client.get(path))
        return answer

    def status(self, number: int) -> int:
        [answer] = self.answers[number]
        return answer.status_code

    def metric(self, name: str, **labels: str) -> float | None:
        return self.service.metrics.registry.get_sample_value(name, labels)

    def close(self) -> None:
        async def end() -> None:
            if self.run is not None:
                self.run.cancel()
            await asyncio.gather(*filter(None, [self.run]), *self.tasks, return_exceptions=True)
            await self.client.aclose()

        self.do(end)
        left = asyncio.all_tasks(self.loop)
        self.loop.close()
        assert not left


@pytest.fixture
def world(pair: Pair) -> Any:
    made = World(pair)
    yield made
    made.close()


class Walk(RuleBasedStateMachine):
    """Everything that can happen to a service, in any order."""

    pair: Pair

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.pair)
        self.was_dead = self.drained = False
        self.signals: asyncio.Queue[int] = asyncio.Queue()

    @initialize(failure=st.sampled_from([None, None, None, None, "slow", "load", "verify", "never"]))
    def begin(self, failure: str | None) -> None:
        self.world.failures = [failure] if failure else []
        self.world.begin()

    @rule(seconds=st.sampled_from([0.1, 2.0, 7.0, 30.0, 130.0, 400.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.wait(seconds)

    @rule(impatient=st.booleans())
    def ask(self, impatient: bool) -> None:
        self.world.ask(**({"X-Request-Timeout": "20"} if impatient else {}))

    @rule()
    def hang(self) -> None:
        self.world.hang()

    @rule()
    def go_on(self) -> None:
        assert self.world.engine.gate is not None
        self.world.engine.gate.set()

    @rule()
    def die(self) -> None:
        self.world.engine.dead = True

    @rule(breaks=st.booleans())
    def break_kernel(self, breaks: bool) -> None:
        self.world.engine.breaks = breaks

    @rule(failure=st.sampled_from(["slow", "load", "verify", "never"]))
    def next_start_fails(self, failure: str) -> None:
        if len(self.world.failures) < 4:
            self.world.failures.append(failure)

    @precondition(lambda self: not self.drained and self.world.phase is not Phase.DEAD)
    @rule()
    def terminate(self) -> None:
        self.drained = True
        world = self.world
        world.lifecycle.enter(Phase.DRAINING)
        assert world.run is not None
        world.run.cancel()
        drain = _drain(world.lifecycle, self.signals, 30.0)
        world.tasks.append(asyncio.ensure_future(drain, loop=world.loop))
        world.wait(0)

    @precondition(lambda self: self.drained)
    @rule()
    def terminate_again(self) -> None:
        self.signals.put_nowait(15)
        self.world.wait(0.1)
        assert all(self.world.answers.values()), "a second signal ends the wait"

    @invariant()
    def ready_only_with_evidence(self) -> None:
        world = self.world
        ready = world.get("/readyz")
        assert (ready.status_code == 200) == (world.phase is Phase.READY and world.engine.alive())
        if ready.status_code == 200:
            assert world.engine.verified
            assert world.loop.time() - world.engine.last_step <= IDLE + HANG + SLACK
            assert ready.json()["status"] == "ready"
        elif world.engine.alive() or world.phase is not Phase.READY:
            assert ready.json()["error"]["message"].startswith(world.phase.value + ":")
            assert int(ready.headers["retry-after"]) >= 1
        assert world.get("/livez").status_code == (503 if world.phase is Phase.DEAD else 200)

    @invariant()
    def every_request_is_answered_once_and_in_time(self) -> None:
        world = self.world
        for number, answers in world.answers.items():
            assert len(answers) <= 1
            bound = 31.0 + SLACK if self.drained else HANG + SLACK
            since = world.loop.time() - world.asked_at[number]
            assert answers or since <= max(bound, HANG + SLACK)
            for answer in answers:
                assert answer.status_code in (200, 500, 503, 504)
                if answer.status_code == 200:
                    [item] = answer.json()["items"]
                    assert item["rewards"] == pytest.approx(expected, rel=1e-6)

    @invariant()
    def dead_is_the_end_and_restarts_are_bounded(self) -> None:
        world = self.world
        assert not self.was_dead or world.phase is Phase.DEAD
        self.was_dead = world.phase is Phase.DEAD
        assert len(world.made) <= 1 + RESTARTS
        assert all(engine.ended.is_set() for engine in world.made[:-1])
        shown = [phase for phase in Phase if world.metric("densepath_phase", phase=phase.value)]
        assert shown == [world.phase]
        up = world.phase in (Phase.READY, Phase.DRAINING) and world.engine.alive()
        assert not world.metric("densepath_engine_up") or up

    def teardown(self) -> None:
        self.world.wait(1000)
        assert all(self.world.answers.values())
        self.world.close()


expected = expected_rewards(*GOOD.values())


def test_a_walk_through_every_phase(pair: Pair) -> None:
    walk = type("WalkOfPair", (Walk,), {"pair": pair})
    quiet = settings(
        max_examples=40,
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(walk, settings=quiet)  # type: ignore[no-untyped-call]


def test_row_21_a_hang_is_answered_within_the_bound_and_the_engine_replaced(world: World) -> None:
    world.ready()
    world.failures = ["slow"]
    first = world.engine
    world.hang()
    began = world.loop.time()
    waiting = [world.ask() for _ in range(3)]
    world.wait(HANG - 1)
    assert not any(world.answers[number] for number in waiting)
    assert world.get("/readyz").status_code == 200
    world.wait(2)
    assert [world.status(number) for number in waiting] == [503] * 3
    assert world.loop.time() - began < HANG + SLACK
    assert first.ended.is_set()
    assert world.phase is Phase.DEGRADED
    assert world.get("/livez").status_code == 200
    refused = world.get("/readyz")
    assert refused.json()["error"]["message"].startswith("degraded: ")
    assert int(refused.headers["retry-after"]) <= 60
    assert world.metric("densepath_engine_up") == 0
    world.wait(7)
    assert world.phase is Phase.READY
    assert world.engine is not first
    assert world.metric("densepath_engine_up") == 1
    assert world.metric("densepath_engine_restarts_total", result="ok") == 1
    assert world.status(world.ask()) == 200


def test_row_21_clients_that_give_up_early_hide_no_hang(world: World) -> None:
    world.ready()
    world.hang()
    for _ in range(7):
        number = world.ask(**{"X-Request-Timeout": "15"})
        world.wait(18)
        assert world.status(number) in (503, 504)
    world.wait(4)
    assert world.metric("densepath_engine_restarts_total", result="ok") == 1


def test_row_21_an_idle_engine_is_probed_and_a_probe_is_no_traffic(world: World) -> None:
    world.ready()
    world.wait(60)
    assert 3 <= world.engine.scored <= 6
    assert world.metric("densepath_tokens_total", kind="response") == 0
    assert world.metric("densepath_queued_tokens") == 0
    world.hang()
    world.wait(IDLE + HANG + SLACK + 2)
    assert world.metric("densepath_engine_restarts_total", result="ok") == 1, "nobody asked, and it was seen"


def test_an_engine_whose_every_pass_fails_is_replaced(world: World) -> None:
    world.ready()
    world.engine.breaks = True
    assert world.status(world.ask()) == 500
    world.wait(IDLE + SLACK + 2)
    assert world.metric("densepath_engine_restarts_total", result="ok") == 1
    assert world.status(world.ask()) == 200


def test_a_service_that_was_stopped_for_a_while_has_no_hanging_engine(world: World) -> None:
    world.ready()
    world.hang()
    number = world.ask()
    world.wait(60)
    world.loop.jump(400)
    world.wait(30)
    assert world.phase is Phase.READY
    assert world.engine.gate is not None
    world.engine.gate.set()
    world.wait(1)
    assert world.status(number) == 200


def test_row_20_too_many_losses_end_the_service(world: World) -> None:
    world.ready()
    for _ in range(RESTARTS):
        assert world.phase is Phase.READY
        world.engine.dead = True
        world.wait(3)
    world.engine.dead = True
    world.wait(3)
    assert world.phase is Phase.DEAD
    assert world.get("/livez").status_code == 503
    assert world.get("/readyz").json()["error"]["message"].startswith("dead: ")
    assert world.run is not None
    assert isinstance(world.run.exception(), EngineUnavailableError)
    assert len(world.made) == 1 + RESTARTS


def test_a_restart_that_fails_counts_and_one_that_hangs_is_ended(world: World) -> None:
    world.ready()
    world.failures = ["verify", "never"]
    world.engine.dead = True
    world.wait(HANG + 10)
    assert world.phase is Phase.READY
    assert world.metric("densepath_engine_restarts_total", result="failed") == 2
    assert world.metric("densepath_engine_restarts_total", result="ok") == 1
    assert [engine.ended.is_set() for engine in world.made] == [True, True, True, False]


def test_a_pair_that_is_switched_to_during_a_restart_stays(world: World) -> None:
    world.ready()
    world.engine.dead = True
    world.wait(1)
    assert world.phase is Phase.DEGRADED
    other = Engine(CONTEXT_LENGTH)
    world.lifecycle.switch(replace(world.lifecycle.served, scorer=other))
    assert world.phase is Phase.READY
    world.wait(5)
    assert world.engine is other
    assert world.made[-1].ended.is_set(), "the restarted one is not needed"


def test_who_waits_for_the_hanging_engine_of_before_is_answered(world: World) -> None:
    world.ready()
    old = world.engine
    world.hang()
    number = world.ask()
    world.lifecycle.switch(replace(world.lifecycle.served, scorer=Engine(CONTEXT_LENGTH)))
    world.wait(HANG + SLACK)
    assert world.status(number) == 503
    assert old.ended.is_set()
    assert world.phase is Phase.READY, "the served engine is well"


def test_loading_other_weights_is_no_hang(world: World) -> None:
    world.ready()
    with world.lifecycle.unwatched():
        world.hang()
        number = world.ask()
        world.wait(3 * HANG)
        assert world.phase is Phase.READY
        assert world.engine.gate is not None
        world.engine.gate.set()
        world.wait(1)
    assert world.status(number) == 200


def test_a_first_start_that_fails_is_not_tried_again(world: World) -> None:
    world.failures = ["verify"]
    world.begin()
    assert world.phase is Phase.VERIFYING
    assert world.get("/readyz").json()["error"]["message"].startswith("verifying: ")
    world.wait(2)
    assert world.run is not None
    assert isinstance(world.run.exception(), InvalidPairError)
    assert (world.phase, len(world.made)) == (Phase.DEAD, 1)


@pytest.mark.parametrize(
    ("before", "after"), [("starting", "ready"), ("draining", "ready"), ("dead", "starting")]
)
def test_a_phase_that_cannot_follow_is_refused(before: str, after: str, world: World) -> None:
    if before != "starting":
        world.lifecycle.enter(Phase(before))
    with pytest.raises(RuntimeError, match=f"{after} cannot follow {before}"):
        world.lifecycle.enter(Phase(after))
