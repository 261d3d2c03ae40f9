"""The token budget: the queue is limited in tokens, not in requests."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from densepath.errors import InvalidRequestError, OverloadedError

#: The rate before anything has been measured. Even a small model on a CPU is faster.
FIRST_GUESS_TOKENS_PER_SECOND = 1000.0
LONGEST_RETRY_AFTER = 60  # seconds


class Ticket:
    """The share of the budget that one request holds."""

    def __init__(self, budget: TokenBudget, tokens: int) -> None:
        self._budget = budget
        self.tokens = tokens

    def finish(self, tokens: int) -> None:
        """Give back the tokens of a sequence that has been answered."""
        self.tokens -= tokens
        self._budget.release(tokens, served=True)


class TokenBudget:
    """Admits requests while fewer than `max_tokens` tokens are queued or running. For one event loop."""

    def __init__(self, max_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_tokens = max_tokens
        self.queued_tokens = 0
        self._clock = clock
        self._rate = FIRST_GUESS_TOKENS_PER_SECOND
        self._since = clock()
        self._served = 0

    @contextmanager
    def admit(self, tokens: int) -> Iterator[Ticket]:
        """Hold `tokens` of the budget. Those that the ticket still holds at the end are given back.

        Raises OverloadedError with `retry_after` if the budget is full, and InvalidRequestError for a request
        that is too large even for an empty queue.
        """
        if tokens > self.max_tokens:
            raise InvalidRequestError(
                f"the request has {tokens} tokens, but this service queues at most {self.max_tokens}: "
                "split it into several requests"
            )
        if self.queued_tokens + tokens > self.max_tokens:
            raise OverloadedError(
                f"{self.queued_tokens} tokens are queued, and with this request's {tokens} they would be "
                f"more than {self.max_tokens}: send it again after Retry-After",
                retry_after=self._retry_after(tokens),
            )
        if self.queued_tokens == 0:
            self._since, self._served = self._clock(), 0
        self.queued_tokens += tokens
        ticket = Ticket(self, tokens)
        try:
            yield ticket
        finally:
            self.release(ticket.tokens, served=False)

    def release(self, tokens: int, *, served: bool) -> None:
        """Return tokens to the budget, and measure the rate from those that were served."""
        self.queued_tokens -= tokens
        if not served:
            return
        self._served += tokens
        elapsed = self._clock() - self._since
        if elapsed >= 1.0:
            self._rate = 0.7 * self._rate + 0.3 * self._served / elapsed
            self._since, self._served = self._clock(), 0

    def _retry_after(self, tokens: int) -> int:
        """Whole seconds until the request would fit, at the measured rate of a busy service."""
        over = self.queued_tokens + tokens - self.max_tokens
        return max(1, min(LONGEST_RETRY_AFTER, math.ceil(over / self._rate)))
