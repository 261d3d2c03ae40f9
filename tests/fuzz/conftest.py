"""Fuzzing in process, through ASGI. Each test sends 20,000 cases in `make fuzz`, and a few in the suite."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.conftest import LIMITS
from api.running import make_service, pair
from densepath.api.app import create_app
from densepath.api.keys import ApiKeys, Guard
from densepath.api.swap import Swapping
from densepath.errors import InvalidPairError
from densepath.pair.pair import Pair

__all__ = ["pair"]

#: How many cases a test of the suite sends, and one of `make fuzz`.
FEW, MANY, ROUND = 200, 20_000, 1000
settings.register_profile(
    "fuzz",
    deadline=None,
    max_examples=MANY,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
#: More than this, the process may not grow by: the allocators and the caches of hypothesis keep some.
MOST_GROWTH_BYTES = 200 << 20

OPERATOR = {"Authorization": "Bearer operator"}

Send = Callable[..., httpx.Response]


def fuzz(case: st.SearchStrategy[Any], answered: Callable[[Any], None], *, share: int = 1) -> None:
    """Call `answered` with this run's number of cases, divided by `share`.

    Hypothesis remembers each case of a round, so that none comes twice. Rounds are short, and the garbage
    collector, which looks rarely (densepath/garbage.py), looks after each: what grows then is kept.
    """
    long = settings.get_current_profile_name() == "fuzz"
    number = max(1, (MANY if long else FEW) // share)
    rounds = -(-number // ROUND)
    for _ in range(rounds):
        settings(settings(), max_examples=-(-number // rounds))(given(case)(answered))()
        if long:
            gc.collect()


def refuse(*_directories: Any) -> Any:
    """What a swap calls for two directories that it allows."""
    raise InvalidPairError("the directories hold no pair")


@pytest.fixture(scope="module")
def send(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Send]:
    """Send a request to the application over the fake engine, without a socket; its whole answer."""
    service = make_service(pair, limits=LIMITS)
    swapping = Swapping(tmp_path_factory.mktemp("pairs"), refuse, drain_seconds=1)
    guard = Guard(ApiKeys(), ApiKeys(["operator"]))
    app = create_app(service, engine="fake", guard=guard, swapping=swapping)
    loop = asyncio.new_event_loop()
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    client = httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=OPERATOR)
    loop.run_until_complete(service.lifecycle.start())

    def send(method: str, path: str, **request: Any) -> httpx.Response:
        return loop.run_until_complete(client.request(method, path, **request))

    yield send
    loop.run_until_complete(client.aclose())
    loop.run_until_complete(service.lifecycle.idle.wait())
    assert service.budget.queued_tokens == 0
    assert service.bodies.held_bytes == 0
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


_fuzzed: list[str] = []


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Iterator[Counter[int]]:
    """The answers by status, printed after the run. The process does not grow past a bound meanwhile."""
    # A line for each request would be kept by pytest.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    process = psutil.Process()
    before, most = process.memory_info().rss, 0
    counts: Counter[int] = Counter()
    began = time.perf_counter()

    class Counting(Counter[int]):
        def __setitem__(self, status: int, number: int) -> None:
            nonlocal most
            most = max(most, process.memory_info().rss - before)
            super().__setitem__(status, number)

    counts = Counting()
    yield counts
    statuses = ", ".join(f"{number} of {status}" for status, number in sorted(counts.items()))
    _fuzzed.append(
        f"{request.node.name}: {counts.total()} cases in {time.perf_counter() - began:.0f} s; {statuses};"
        f" memory grew by {most / (1 << 20):.0f} MiB at most"
    )
    assert most < MOST_GROWTH_BYTES


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what was sent and answered."""
    for line in _fuzzed:
        terminalreporter.write_line(line)
