"""The token budget: never exceeded, always given back, fair; its Retry-After follows what was measured."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from contextlib import AsyncExitStack, suppress

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from densepath.admission import Ticket, TokenBudget
from densepath.errors import InvalidRequestError, OverloadedError

LIMIT = 100


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Request:
    """One request, in a task: it waits for its turn, finishes sequences, and ends."""

    def __init__(self, budget: TokenBudget, sequences: list[int]) -> None:
        self.tokens, self.sequences = sum(sequences), sequences
        self.ticket: Ticket | None = None
        self.end = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self._run(budget))

    async def _run(self, budget: TokenBudget) -> None:
        async with budget.admit(self.tokens) as self.ticket:
            await self.end.wait()


class Budget(RuleBasedStateMachine):
    """Requests that come, wait, finish some of their sequences, hang up, and end."""

    @initialize()
    def open(self) -> None:
        self.loop = asyncio.new_event_loop()

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.budget = TokenBudget(LIMIT, self.clock)
        self.held: list[Request] = []

    def step(self) -> None:
        for _ in range(3):
            self.loop.run_until_complete(asyncio.sleep(0))

    async def make(self, sequences: list[int]) -> Request:
        return Request(self.budget, sequences)

    @rule(sequences=st.lists(st.integers(1, 40), max_size=5))
    def come(self, sequences: list[int]) -> None:
        taken = self.budget.queued_tokens + self.budget.waiting_tokens
        request = self.loop.run_until_complete(self.make(sequences))
        self.step()
        if request.tokens > LIMIT:
            assert isinstance(request.task.exception(), InvalidRequestError)
        elif taken >= LIMIT:
            error = request.task.exception()
            assert isinstance(error, OverloadedError)
            assert error.retry_after is not None
            assert 1 <= error.retry_after <= 60
        else:
            self.held.append(request)

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0), seconds=st.floats(0, 5))
    def finish_a_sequence(self, pick: int, seconds: float) -> None:
        self.clock.now += seconds
        request = self.held[pick % len(self.held)]
        if request.ticket is not None and request.sequences:
            tokens = request.sequences.pop()
            request.ticket.finish(tokens)
            request.tokens -= tokens
        self.step()

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0), hang_up=st.booleans())
    def end(self, pick: int, hang_up: bool) -> None:
        request = self.held.pop(pick % len(self.held))
        if hang_up or request.ticket is None:
            request.task.cancel()
        else:
            request.end.set()
        self.step()
        assert request.task.done()

    @precondition(lambda self: any(each.ticket is None for each in self.held))
    @rule()
    def hang_up_when_it_is_let_in(self) -> None:
        first = next(each for each in self.held if each.ticket is None)
        for request in [each for each in self.held if each.ticket is not None]:
            request.end.set()
            self.held.remove(request)
        self.loop.run_until_complete(asyncio.sleep(0))
        first.task.cancel()
        self.held.remove(first)
        self.step()

    @invariant()
    def holds_what_is_unfinished(self) -> None:
        running = [each for each in self.held if each.ticket is not None]
        waiting = [each for each in self.held if each.ticket is None]
        assert self.budget.queued_tokens == sum(each.tokens for each in running)
        assert self.budget.waiting_tokens == sum(each.tokens for each in waiting)
        assert 0 <= self.budget.queued_tokens <= LIMIT
        assert not waiting or self.budget.queued_tokens + waiting[0].tokens > LIMIT, "it could run"

    def teardown(self) -> None:
        for request in self.held:
            request.task.cancel()
        if hasattr(self, "loop"):
            self.step()
            self.loop.close()
        assert self.budget.queued_tokens == self.budget.waiting_tokens == 0


def test_row_03_whatever_happens_the_budget_is_kept_and_given_back() -> None:
    run_state_machine_as_test(Budget)


async def refused(budget: TokenBudget, tokens: int) -> int:
    with pytest.raises(OverloadedError) as error:
        async with budget.admit(tokens):
            pass
    assert error.value.retry_after is not None
    return error.value.retry_after


async def test_row_01_retry_after_follows_the_measured_rate() -> None:
    clock = Clock()
    budget = TokenBudget(100_000, clock)
    async with budget.admit(100_000) as first, AsyncExitStack() as stack:
        guessed = await refused(budget, 10_000)
        assert await refused(budget, 10_000) == 2 * guessed  # it comes after the one refused before it
        for _ in range(20):
            clock.now += 1.0
            first.finish(100)
        await stack.enter_async_context(budget.admit(2_000))
        assert await refused(budget, 10_000) == 60  # slow; and never more
        for _ in range(20):
            clock.now += 1.0
            first.finish(4_000)
        await stack.enter_async_context(budget.admit(80_000))
        assert await refused(budget, 8_000) == 3  # 8000 tokens too many, at a little under 4000 a second


async def test_an_empty_service_does_not_count_as_slow() -> None:
    clock = Clock()
    budget = TokenBudget(10_000, clock)
    for _ in range(10):
        clock.now += 3600.0  # nobody asks
        async with budget.admit(5_000) as ticket:
            clock.now += 1.0
            ticket.finish(5_000)
    async with budget.admit(10_000):
        assert await refused(budget, 5_000) <= 2


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
async def test_row_02_no_size_starves(share: float) -> None:
    """120 clients of 2 % each come back as they are told, and one of a much larger share does too."""
    clock, generator, rate = Clock(), random.Random(1), 2000.0
    budget = TokenBudget(10_000, clock)
    events: list[tuple[float, int, int, Request | None]] = []
    number, answered, busy_until = itertools.count(), [0, 0], 0.0
    running: list[Request] = []
    who: dict[Request, int] = {}

    def at(moment: float, client: int, request: Request | None = None) -> None:
        heapq.heappush(events, (moment, next(number), client, request))

    for client in range(1, 121):
        at(generator.random(), client)
    at(5.0, 0)  # the large one
    waiting: list[Request] = []
    while clock.now < 300:
        clock.now, _, client, request = heapq.heappop(events)
        if request is None:
            request = Request(budget, [200 if client else int(10_000 * share)])
            who[request] = client
            waiting.append(request)
        elif request.ticket is not None:
            request.ticket.finish(request.tokens)
            request.end.set()
            running.remove(request)
            answered[client == 0] += 1
            at(clock.now + 0.01, client)
        for _ in range(4):
            await asyncio.sleep(0)
        for each in list(waiting):
            if each.ticket is not None:
                busy_until = max(busy_until, clock.now) + each.tokens / rate
                at(busy_until, who[each], each)
                running.append(each)
                waiting.remove(each)
            elif each.task.done():
                error = each.task.exception()
                assert isinstance(error, OverloadedError)
                assert error.retry_after is not None
                at(clock.now + error.retry_after + 0.25 * generator.random(), who[each])
                waiting.remove(each)
    for each in [*waiting, *running]:
        each.task.cancel()
        with suppress(asyncio.CancelledError):
            await each.task
    assert answered[1] >= 3, answered
    assert answered[0] * 200 + answered[1] * 10_000 * share > 0.8 * 300 * rate, "the engine was idle"


def test_a_body_counts_while_it_is_read() -> None:
    budget = TokenBudget(1 << 20)
    with budget.reading(1000):
        assert budget.all_tokens == 1000
        with budget.reading(1 << 30), budget.reading(1 << 30):
            with pytest.raises(OverloadedError), budget.reading(1 << 30):
                pass
            with budget.reading(1000):  # a small one still finds room
                pass
    assert budget.all_tokens == 0
