"""Many clients of the load test, in a process of their own that does nothing else while they run."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from time import monotonic, perf_counter

from endurance.traffic import BrokenAnswerError, ask

#: A client that was refused waits for Retry-After, but at most so long: the load has to stay.
LONGEST_WAIT_SECONDS = 1.0


@dataclass
class Tally:
    """What a crowd sent, and what it got."""

    sent: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    answers: list[tuple[int, bytes]] = field(default_factory=list)  # which request, and the body of its 200
    seconds: dict[int, list[float]] = field(default_factory=dict)  # of each status
    retry_after: Counter[str] = field(default_factory=Counter)  # of each 503
    lag_seconds: list[float] = field(default_factory=list)  # how late this process itself woke up

    def add(self, other: Tally) -> None:
        self.sent += other.sent
        self.outcomes += other.outcomes
        self.answers += other.answers
        for status, seconds in other.seconds.items():
            self.seconds.setdefault(status, []).extend(seconds)
        self.retry_after += other.retry_after
        self.lag_seconds += other.lag_seconds


async def crowd(port: int, requests: Sequence[bytes], clients: int, seconds: float, seed: int) -> Tally:
    """`clients` clients, each of which sends one request after another."""
    tally = Tally()
    end = monotonic() + seconds

    async def client(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        await asyncio.sleep(rng.random() * min(1.0, seconds / 4))  # they don't all begin in the same moment
        while monotonic() < end:
            which = rng.randrange(len(requests))
            tally.sent += 1
            try:
                answer = await ask(port, requests[which])
            except (OSError, BrokenAnswerError) as error:
                tally.outcomes[f"{type(error).__name__}: {error}"] += 1
                continue
            tally.outcomes[str(answer.status)] += 1
            tally.seconds.setdefault(answer.status, []).append(answer.seconds)
            if answer.status == 200:
                tally.answers.append((which, answer.body))
            else:
                wait = answer.headers.get("retry-after", "none")
                tally.retry_after[wait] += 1
                longest = min(LONGEST_WAIT_SECONDS, float(wait)) if wait.isdecimal() else 0.0
                await asyncio.sleep(longest * (0.5 + rng.random() / 2))

    async def watch() -> None:
        while monotonic() < end:
            due = perf_counter() + 0.02
            await asyncio.sleep(0.02)
            tally.lag_seconds.append(perf_counter() - due)

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        for number in range(clients):
            group.create_task(client(number))
    return tally


def _run(port: int, requests: Sequence[bytes], clients: int, seconds: float, seed: int) -> Tally:
    return asyncio.run(crowd(port, requests, clients, seconds, seed))


def crowds(
    processes: int, port: int, requests: Sequence[bytes], clients: int, seconds: float, seed: int
) -> Tally:
    """The same crowd in several processes: `clients` in all."""
    tally = Tally()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        shares = [len(range(number, clients, processes)) for number in range(processes)]
        works = [
            pool.submit(_run, port, requests, share, seconds, seed + number)
            for number, share in enumerate(shares)
        ]
        for work in works:
            tally.add(work.result())
    return tally
