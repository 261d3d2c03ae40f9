"""The token budget: never exceeded, always given back, and its Retry-After follows what was measured."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from densepath.admission import Ticket, TokenBudget
from densepath.errors import InvalidRequestError, OverloadedError

LIMIT = 100


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def retry_after(budget: TokenBudget, tokens: int) -> int:
    with pytest.raises(OverloadedError) as refused, budget.admit(tokens):
        pass
    assert isinstance(refused.value.retry_after, int)
    return refused.value.retry_after


class Budget(RuleBasedStateMachine):
    """Requests that come, finish some of their sequences, and end, well or by an exception."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.budget = TokenBudget(LIMIT, self.clock)
        self.held: list[tuple[ExitStack, Ticket, list[int]]] = []

    @rule(sequences=st.lists(st.integers(1, 40), max_size=5))
    def come(self, sequences: list[int]) -> None:
        tokens, before = sum(sequences), self.budget.queued_tokens
        if tokens > LIMIT:
            with pytest.raises(InvalidRequestError), self.budget.admit(tokens):
                pass
        elif before + tokens > LIMIT:
            assert 1 <= retry_after(self.budget, tokens) <= 60
        else:
            stack = ExitStack()
            self.held.append((stack, stack.enter_context(self.budget.admit(tokens)), sequences))
            return
        assert self.budget.queued_tokens == before

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0), seconds=st.floats(0, 5))
    def finish_a_sequence(self, pick: int, seconds: float) -> None:
        self.clock.now += seconds
        _, ticket, sequences = self.held[pick % len(self.held)]
        if sequences:
            ticket.finish(sequences.pop())

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0), failed=st.booleans())
    def end(self, pick: int, failed: bool) -> None:
        stack, _, _ = self.held.pop(pick % len(self.held))
        if failed:
            with pytest.raises(KeyError), stack:
                raise KeyError
        else:
            stack.close()

    @invariant()
    def holds_what_is_unfinished(self) -> None:
        assert self.budget.queued_tokens == sum(sum(sequences) for _, _, sequences in self.held)
        assert 0 <= self.budget.queued_tokens <= LIMIT

    def teardown(self) -> None:
        for stack, _, _ in self.held:
            stack.close()
        assert self.budget.queued_tokens == 0


TestBudget = Budget.TestCase


def test_retry_after_follows_the_measured_rate() -> None:
    clock = Clock()
    budget = TokenBudget(100_000, clock)
    with budget.admit(100_000) as ticket:
        guessed = retry_after(budget, 10_000)
        for _ in range(20):
            clock.now += 1.0
            ticket.finish(100)
        slow = retry_after(budget, 10_000)
        assert slow > guessed
        assert slow == 60  # never more
        for _ in range(20):
            clock.now += 1.0
            ticket.finish(4_000)
        assert budget.queued_tokens == 18_000
        assert retry_after(budget, 90_000) == 3  # 8000 tokens too many, at a little under 4000 a second


def test_an_empty_service_does_not_count_as_slow() -> None:
    clock = Clock()
    budget = TokenBudget(10_000, clock)
    for _ in range(10):
        clock.now += 3600.0  # nobody asks
        with budget.admit(5_000) as ticket:
            clock.now += 1.0
            ticket.finish(5_000)
    with budget.admit(10_000):
        assert retry_after(budget, 5_000) <= 2
