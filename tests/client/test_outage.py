"""An outage: what it costs in attempts, and what is logged. Time is simulated."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from client.conftest import Clock, FakeService, refusal
from densepath.client import AsyncClient
from densepath.client.gate import RETRIES, RETRY_AFTER_MAX_SECONDS
from densepath.client.retry import ATTEMPTS
from densepath.errors import DeadlineExceededError, DensepathError, OverloadedError

ITEM = {"prompt_token_ids": [1], "response_token_ids": [7]}
N_CALLS = 200
OUTAGE_SECONDS = 10.0


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer. It must wait for nothing but timers."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        loop = runner.get_loop()
        for module in ("gate", "retry", "patience"):
            monkeypatch.setattr(f"densepath.client.{module}.monotonic", loop.time)
        yield runner


def refused(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


def unavailable(retry_after: int | None) -> Callable[[httpx.Request], httpx.Response]:
    return lambda request: refusal(OverloadedError("full", retry_after=retry_after))


class Storm:
    """A service that fails for OUTAGE_SECONDS, with a latency, and the outcomes of calls to it."""

    def __init__(self, runner: asyncio.Runner, failure: Callable[[httpx.Request], httpx.Response]) -> None:
        self.runner, self.failure = runner, failure
        self.service = FakeService()
        self.seconds = OUTAGE_SECONDS
        self.latency = 0.0
        self.between = 0.0  # seconds between two calls
        self.sent: list[float] = []
        self.outcomes: Counter[str] = Counter()

    async def handle(self, request: httpx.Request) -> httpx.Response:
        now = asyncio.get_running_loop().time() - 1000
        if request.url.path == "/v1/rewards":
            self.sent.append(now)
            if self.latency:
                await asyncio.sleep(self.latency)
            if now < self.seconds:
                return self.failure(request)
        return self.service(request)

    async def call(self, client: AsyncClient, deadline: float | None) -> None:
        try:
            await client.score([ITEM], deadline=deadline)
        except DensepathError as error:
            self.outcomes[type(error).__name__] += 1
        else:
            self.outcomes["ok"] += 1

    def client(self) -> AsyncClient:
        return AsyncClient("http://service:8000", transport=httpx.MockTransport(self.handle))

    def run(self, deadline: float | None, shared: bool = False) -> None:
        async def all_calls() -> None:
            clients = [self.client() for _ in range(1 if shared else N_CALLS)]
            await clients[0].pair()
            calls = []
            for n in range(N_CALLS):
                calls.append(asyncio.create_task(self.call(clients[n % len(clients)], deadline)))
                if self.between:
                    await asyncio.sleep(self.between)
            await asyncio.gather(*calls)
            for client in clients:
                await client.aclose()

        self.runner.run(all_calls())


@pytest.mark.parametrize("between", [0.0, 0.04], ids=["at once", "one after another"])
@pytest.mark.parametrize("shared", [True, False], ids=["one client", "a client for each call"])
@pytest.mark.parametrize(
    "failure", [refused, unavailable(None), unavailable(1)], ids=["lost", "503", "after"]
)
def test_row_43_an_outage_costs_hardly_an_attempt(
    simulated: asyncio.Runner, caplog: pytest.LogCaptureFixture, failure: Any, shared: bool, between: float
) -> None:
    storm = Storm(simulated, failure)
    storm.between = between
    storm.run(deadline=60, shared=shared)
    assert storm.outcomes == {"ok": N_CALLS}
    print(f"{len(storm.sent)} attempts for {N_CALLS} calls")
    assert len(storm.sent) <= 1.1 * N_CALLS + OUTAGE_SECONDS
    began, ended = (record.message for record in caplog.records if record.name == "densepath.client")
    assert began.startswith("service:8000 has not answered for ")
    assert ended.startswith("service:8000 answers again after 1")


def test_row_43_what_was_under_way_when_it_began_is_sent_once_more(simulated: asyncio.Runner) -> None:
    storm = Storm(simulated, refused)
    storm.latency = 0.05  # all are sent before one has failed
    storm.run(deadline=60)
    assert storm.outcomes == {"ok": N_CALLS}
    assert sum(at == 0 for at in storm.sent) == N_CALLS
    known = sum(at > 0 for at in storm.sent)
    print(f"{known} attempts for {N_CALLS} calls once the outage was known")
    assert known <= 1.1 * N_CALLS + OUTAGE_SECONDS


def test_without_a_deadline_the_calls_give_up_together(simulated: asyncio.Runner) -> None:
    storm = Storm(simulated, refused)
    storm.seconds = 1000.0
    storm.run(deadline=None)
    assert storm.outcomes == {"UnavailableError": N_CALLS}
    assert ATTEMPTS <= len(storm.sent) <= ATTEMPTS + 1


def test_row_43_a_service_that_is_back_is_not_met_by_all_at_once(simulated: asyncio.Runner) -> None:
    storm = Storm(simulated, refused)
    storm.latency = 0.05
    storm.run(deadline=60)
    back = sorted(at for at in storm.sent if at > OUTAGE_SECONDS)
    assert sum(at < back[0] + storm.latency for at in back) == 1
    assert sum(at < back[0] + 0.3 for at in back) < N_CALLS / 4


def test_row_43_failures_that_come_and_go_spend_the_budget(simulated: asyncio.Runner) -> None:
    draw = random.Random(0)
    storm = Storm(simulated, refused)

    async def half(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/rewards":
            storm.sent.append(asyncio.get_running_loop().time())
            if draw.random() < 0.7:
                raise httpx.ReadError("reset")
        return storm.service(request)

    storm.handle = half  # type: ignore[method-assign]
    storm.run(deadline=1000, shared=True)
    seconds = storm.sent[-1] - storm.sent[0]
    assert len(storm.sent) <= 1.1 * N_CALLS + RETRIES + seconds + 1


def test_a_probe_that_hangs_does_not_hold_up_the_others(simulated: asyncio.Runner) -> None:
    storm = Storm(simulated, refused)
    hung = []

    async def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/rewards":
            at = asyncio.get_running_loop().time() - 1000
            storm.sent.append(at)
            if len(storm.sent) == 1:
                raise httpx.ReadError("reset")
            if len(storm.sent) == 2:
                hung.append(at)
                await asyncio.sleep(1000)
        return storm.service(request)

    storm.handle = handle  # type: ignore[method-assign]
    storm.run(deadline=50)
    assert len(hung) == 1
    assert storm.outcomes == {"ok": N_CALLS - 1, "DeadlineExceededError": 1}
    assert sorted(storm.sent)[2] - hung[0] == pytest.approx(5, abs=0.5)


def test_a_retry_after_of_a_day_is_capped(client: Any, service: FakeService, clock: Clock) -> None:
    service.instead = [
        unavailable(86_400),
        lambda request: httpx.Response(429, headers={"Retry-After": "86400"}),
    ]
    assert client.score([ITEM])[0].reward_T is not None
    assert all(RETRY_AFTER_MAX_SECONDS <= nap < RETRY_AFTER_MAX_SECONDS + 1 for nap in clock.naps)
    assert len(clock.naps) == 2


@pytest.mark.parametrize(
    ("until", "seconds"),
    [
        ("Sat, 28 Nov 2026 10:00:07 GMT", 7),
        ("Sat, 28 Nov 2026 09:00:00 GMT", 0),
        ("Sun, 29 Nov 2026 10:00:00 GMT", RETRY_AFTER_MAX_SECONDS),
        ("Sat, 28 Nov 2026 10:00:07 -0000", 7),
    ],
)
def test_row_45_a_retry_after_may_be_a_date_of_the_services_clock(
    client: Any, service: FakeService, clock: Clock, until: str, seconds: int
) -> None:
    headers = {"Retry-After": until, "Date": "Sat, 28 Nov 2026 10:00:00 GMT"}
    service.instead = [lambda request: httpx.Response(503, headers=headers)]
    client.score([ITEM])
    assert seconds <= clock.naps[0] <= seconds + 0.25


def test_a_short_failure_is_not_logged(
    client: Any, service: FakeService, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    service.instead = [unavailable(3)]
    client.score([ITEM])
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_deadline_that_ends_within_the_outage_is_not_waited_for(
    connect: Any, service: FakeService, clock: Clock
) -> None:
    first, second = connect(service), connect(service)
    second.pair()
    service.instead = [unavailable(30)] * 9
    with pytest.raises(DeadlineExceededError):
        first.score([ITEM], deadline=10)
    with pytest.raises(DeadlineExceededError, match="10 s") as caught:
        second.score([ITEM], deadline=10)  # it was never sent
    assert isinstance(caught.value.__cause__, OverloadedError)
    assert len(service.scored()) == 1
    assert clock.naps == []
