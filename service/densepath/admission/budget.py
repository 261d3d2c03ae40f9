"""The token budget: the queue is limited in tokens, not in requests."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from densepath.errors import InvalidRequestError, OverloadedError

#: The rate before anything has been measured. Even a small model on a CPU is faster.
FIRST_GUESS_TOKENS_PER_SECOND = 1000.0
LONGEST_RETRY_AFTER = 60  # seconds
#: A byte of a body is one token at most, and about a quarter of one as a rule.
BYTES_OF_A_TOKEN = 4
#: So many bytes may always be read together, however small the budget.
LEAST_READING = 1 << 20


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
    """Admits requests while fewer than `max_tokens` tokens are queued or running. For one event loop.

    Whether a request may wait does not depend on its size: it may, as long as `max_tokens` are not taken by
    those before it. If it does not fit yet, it waits, and those that come later wait behind it. So no size
    starves. The engine never has more than `max_tokens`, and one request at most waits beyond that.
    """

    def __init__(self, max_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_tokens = max_tokens
        self.queued_tokens = 0
        self._clock = clock
        self._rate = FIRST_GUESS_TOKENS_PER_SECOND
        self._since = clock()
        self._served = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.waiting_tokens = self.reading_tokens = 0
        self._most_reading = max(BYTES_OF_A_TOKEN * max_tokens, LEAST_READING)
        self._owed, self._owed_since = 0.0, clock()

    def ensure_room(self, tokens: int = 1) -> None:
        """Raise OverloadedError where a request of so many tokens would be refused now."""
        taken = self.queued_tokens + self.waiting_tokens
        if taken >= self.max_tokens:
            raise OverloadedError(
                f"{taken} tokens are queued, and this service queues at most {self.max_tokens}: "
                "send it again after Retry-After",
                retry_after=self._retry_after(tokens),
            )

    @property
    def all_tokens(self) -> int:
        """Tokens that are queued, that wait for their turn, or that a body which is being read may have."""
        return self.queued_tokens + self.waiting_tokens + self.reading_tokens

    @contextmanager
    def reading(self, size: int) -> Iterator[None]:
        """Count a body of `size` bytes while it is parsed and tokenised, before its tokens are known.

        It counts one token per byte, which is the most it can have without the text of a chat template, but
        at most a quarter of what may be read together. The last quarter is left to smaller bodies.

        Raises OverloadedError where too much is being read.
        """
        quarter = self._most_reading // 4
        tokens = min(size, quarter)
        if self.reading_tokens + tokens > (self._most_reading if size < quarter else 3 * quarter):
            raise OverloadedError(
                f"bodies with up to {self.reading_tokens} tokens are being read: send it again after "
                "Retry-After",
                retry_after=self._retry_after(tokens // BYTES_OF_A_TOKEN),
            )
        self.reading_tokens += tokens
        try:
            yield
        finally:
            self.reading_tokens -= tokens

    @asynccontextmanager
    async def admit(self, tokens: int) -> AsyncIterator[Ticket]:
        """Hold `tokens` of the budget, as soon as it is this request's turn.

        Those that the ticket still holds at the end are given back.

        Raises OverloadedError with `retry_after` if the budget is full, and InvalidRequestError for a request
        that is too large even for an empty queue.
        """
        if tokens > self.max_tokens:
            raise InvalidRequestError(
                f"the request has {tokens} tokens, but this service queues at most {self.max_tokens}: "
                "split it into several requests"
            )
        self.ensure_room(tokens)
        if self._waiting or self.queued_tokens + tokens > self.max_tokens:
            await self._wait(tokens)
        else:
            self._take(tokens)
        ticket = Ticket(self, tokens)
        try:
            yield ticket
        finally:
            self.release(ticket.tokens, served=False)

    def _take(self, tokens: int) -> None:
        if self.queued_tokens == 0:
            self._since, self._served = self._clock(), 0
        self.queued_tokens += tokens

    async def _wait(self, tokens: int) -> None:
        """Wait for this request's turn, in which `_let_in` has taken its tokens."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (tokens, turn)
        self._waiting.append(place)
        self.waiting_tokens += tokens
        try:
            await turn
        except asyncio.CancelledError:
            if place in self._waiting:
                self._waiting.remove(place)
                self.waiting_tokens -= tokens
                self._let_in()
            elif not turn.cancelled():
                self.release(tokens, served=False)  # let in, and cancelled before it noticed
            raise

    def _let_in(self) -> None:
        """Let in those that wait, in order, as long as they fit."""
        while self._waiting and self.queued_tokens + self._waiting[0][0] <= self.max_tokens:
            tokens, turn = self._waiting.popleft()
            self.waiting_tokens -= tokens
            if not turn.done():  # else its client has gone in this moment
                self._take(tokens)
                turn.set_result(None)

    def release(self, tokens: int, *, served: bool) -> None:
        """Return tokens to the budget, and measure the rate from those that were served."""
        self.queued_tokens -= tokens
        self._let_in()
        if not served:
            return
        self._served += tokens
        elapsed = self._clock() - self._since
        if elapsed >= 1.0:
            self._rate = 0.7 * self._rate + 0.3 * self._served / elapsed
            self._since, self._served = self._clock(), 0

    def _retry_after(self, tokens: int) -> int:
        """Whole seconds until the request would fit, at the measured rate of a busy service.

        Those that were refused before it and are still to come back count too, so that they come one after
        another and not all at once.
        """
        now = self._clock()
        self._owed = max(0.0, self._owed - self._rate * (now - self._owed_since))
        self._owed_since = now
        over = self.queued_tokens + self.waiting_tokens + tokens - self.max_tokens + self._owed
        self._owed = min(self._owed + tokens, self._rate * LONGEST_RETRY_AFTER)
        return max(1, min(LONGEST_RETRY_AFTER, math.ceil(over / self._rate)))
