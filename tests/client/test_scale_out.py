"""Two replicas under load, one of them killed, one drained, one given another pair: a call loses nothing.

They are behind a plain balancer of connections or of requests, or the client has the list of both.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from api.running import expected_rewards, pair
from client.balancer import balanced, connections, requests
from client.replica import MAX_ITEMS, Replica, replicas
from densepath.client import AsyncClient, Client, Scores
from densepath.pair.pair import Pair

__all__ = ["pair"]

N_THREADS, N_TASKS = 3, 6
PAUSE_SECONDS = 0.01
"""Of each caller, between two calls: the replicas are to have time to start."""
CALLS = 60
"""So many calls are answered between two things that happen to the replicas."""


ITEMS = [{"prompt_token_ids": [1, n], "response_token_ids": [n, 7 + n, 9]} for n in range(3, 60)]
REWARDS = [np.float32(expected_rewards(*item.values())) for item in ITEMS]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Replica]]:
    with replicas(2, tmp_path_factory.mktemp("replicas")) as both:
        yield both


class Load:
    """Calls from a client of threads and one of an event loop, each checked."""

    def __init__(self, urls: list[str], signs: dict[str, int]) -> None:
        """`signs`: of the rewards of each pair version."""
        self._urls, self._signs = urls, signs
        self._draw = random.Random(0)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.versions: Counter[str] = Counter()  # of the answers
        self.failures: list[BaseException] = []

    def numbers(self) -> list[int]:
        """The numbers of some items."""
        with self._lock:
            return self._draw.sample(range(len(ITEMS)), self._draw.randint(1, MAX_ITEMS))

    def check(self, numbers: list[int], scores: Scores) -> None:
        """Each reward is that of the version that the answer names."""
        sign = self._signs[scores.model_version]
        for number, score in zip(numbers, scores, strict=True):
            np.testing.assert_array_equal(score.reward_T, sign * REWARDS[number])
        with self._lock:
            self.versions[scores.model_version] += 1

    def _thread(self, client: Client) -> None:
        try:
            while not self._stop.is_set():
                numbers = self.numbers()
                self.check(numbers, client.score([ITEMS[number] for number in numbers]))
                time.sleep(PAUSE_SECONDS)
        except BaseException as error:
            self.failures.append(error)

    async def _tasks(self) -> None:
        async with AsyncClient(self._urls) as client:

            async def calls() -> None:
                while not self._stop.is_set():
                    numbers = self.numbers()
                    self.check(numbers, await client.score([ITEMS[number] for number in numbers]))
                    await asyncio.sleep(PAUSE_SECONDS)

            outcomes = await asyncio.gather(*(calls() for _ in range(N_TASKS)), return_exceptions=True)
        self.failures += [one for one in outcomes if isinstance(one, BaseException)]

    @contextmanager
    def on(self) -> Iterator[None]:
        with Client(self._urls) as client:
            threads = [threading.Thread(target=self._thread, args=[client]) for _ in range(N_THREADS)]
            threads.append(threading.Thread(target=asyncio.run, args=[self._tasks()]))
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                self._stop.set()
                for thread in threads:
                    thread.join(60)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert not self.failures, self.failures
            assert time.monotonic() < deadline, self.versions
            time.sleep(0.005)  # between two looks at the condition

    def goes_on(self) -> None:
        """Wait for answers to calls that began after this."""
        before = self.versions.total()
        self.until(lambda: self.versions.total() >= before + CALLS)


@pytest.mark.parametrize("front", [connections, requests, None], ids=["connections", "requests", "list"])
def test_a_call_loses_nothing(front: Any, two: list[Replica], pair: Pair) -> None:
    one, other = two
    turned = replace(pair, version="turned")
    old, new = pair.version, turned.version
    for replica in two:
        replica.kill()
        replica.start(pair)
    with ExitStack() as stack:
        urls = [each.url for each in two]
        if front is not None:
            urls = [stack.enter_context(balanced([each.port for each in two], front))]
        load = Load(urls, {old: 1, new: -1})
        with load.on():
            load.goes_on()

            one.kill()
            load.goes_on()
            one.start(pair)
            load.goes_on()
            assert load.versions.keys() == {old}

            other.drain()
            load.goes_on()
            other.start(turned, turned=True)
            load.until(lambda: load.versions[new] > 0)
            load.goes_on()

            one.drain()
            load.goes_on()
            one.start(turned, turned=True)
            load.goes_on()
            load.versions.clear()
            load.goes_on()
    assert not load.failures, load.failures
    assert load.versions.keys() == {new}
