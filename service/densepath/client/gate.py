"""Whether a request may be sent to a service now: its circuit breaker and its retry budget.

A failure closes the gate for all requests to the service. They wait without being sent. After a time one of
them tries (after Retry-After, at most 60 s of it, and a random time whose bound doubles with each failure).
If it fails too, the gate stays closed. If it is answered, the gate opens step by step: one request at a time,
then two, then four, so that a service that is back does not meet everything at once.

The answer of an attempt that was sent before the last failure says nothing about the time after it, so only
later attempts open the gate. Failures of attempts that ran at the same time are one failure.

A first attempt is always allowed once the gate is open. A retry takes one from the budget. A request that was
already sent when the service failed gets one retry for nothing, because nobody could know.
"""

from __future__ import annotations

import logging
import math
import random
from dataclasses import dataclass
from threading import Lock
from time import monotonic

from densepath.errors import DensepathError, UnavailableError

RETRIES = 32
"""The retry budget of a service, for all clients of the process together: at most this many retries are saved
up. One more is added for every REQUESTS_A_RETRY requests, and one more for every second."""
REQUESTS_A_RETRY = 10

RETRY_AFTER_MAX_SECONDS = 60.0
"""The longest wait that a Retry-After can ask for. After it the service is tried again."""

_JITTER_SECONDS = 0.25
_JITTER_MAX_SECONDS = 8.0
_REST_SECONDS = 1.0
_REST_MAX_SECONDS = 30.0
#: How often a request looks whether the one that tries has been answered, and how long that one may take
#: until another is sent beside it.
_LOOK_SECONDS = 0.2
_PROBE_SECONDS = 5.0
#: With this many requests at a time, the gate is wide open.
_WINDOW_MAX = 64
#: A shorter outage is not logged.
_LOGGED_SECONDS = 1.0

_log = logging.getLogger("densepath.client")


@dataclass(frozen=True)
class Ticket:
    """An attempt that is under way."""

    failures: int  # how many there were before it
    scores: bool


class Gate:
    """The gate of the service `name`. Threads and event loops may share it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = Lock()
        self.failures = 0  # in all; those at the same time are one
        self.last: DensepathError | None = None  # the last failure
        self.in_a_row = 0  # failures since the last answer
        self._since = 0.0  # the first failure of those in a row
        self._logged = False
        self._opens_at = 0.0
        self._rests_until = 0.0
        self._window = math.inf  # how many attempts may be under way
        self._under_way = 0  # attempts that were sent after the last failure
        self._probe_at = 0.0  # when another attempt may be sent beside those that are under way
        self._retries = float(RETRIES)
        self._counted_at = 0.0  # the budget is full at the start

    def enter(self, scores: bool, retry_of: DensepathError | None) -> Ticket | float:
        """Begin an attempt, or say how many seconds to wait before asking again.

        Args:
            scores: whether the request asks for scores. A service that cannot score may still answer others,
                so they open no gate, and are not among those that the gate lets through one at a time.
            retry_of: the failure after which this is a retry that takes one from the budget.

        Raises:
            UnavailableError: the retry budget is spent. Its cause is the failure.
        """
        with self._lock:
            now = monotonic()
            if self._window < math.inf:
                look = random.uniform(0.5, 1) * _LOOK_SECONDS  # noqa: S311
                if now < self._opens_at:
                    left = self._opens_at - now
                    return min(left, look) if self._under_way else left
                if scores and self._under_way >= self._window and now < self._probe_at:
                    return min(self._probe_at - now, look)
            self._retries = min(self._retries + now - self._counted_at, RETRIES)
            self._counted_at = now
            if retry_of is None:
                self._retries = min(self._retries + 1 / REQUESTS_A_RETRY, RETRIES)
            elif self._retries < 1:
                raise self._spent(retry_of) from retry_of
            else:
                self._retries -= 1
            if scores:
                self._under_way += 1
                self._probe_at = now + _PROBE_SECONDS
            return Ticket(self.failures, scores)

    def failed(self, ticket: Ticket, error: DensepathError) -> bool:
        """The attempt failed. Whether it was sent before the service was known to fail."""
        with self._lock:
            now = monotonic()
            refuses_until = now + min(error.retry_after or 0, RETRY_AFTER_MAX_SECONDS)
            if ticket.failures != self.failures:
                self._opens_at = max(self._opens_at, refuses_until)
                self._rests_until = max(self._rests_until, refuses_until)
                return True
            self.failures += 1
            self.last = type(error)(error.message, retry_after=error.retry_after)  # without its traceback
            if self.in_a_row == 0:
                self._since = now
            self.in_a_row += 1
            self._window, self._under_way = 1, 0
            doubled = 2 ** min(self.in_a_row - 1, 16)
            self._opens_at = refuses_until + jitter(self.in_a_row - 1)
            self._rests_until = max(now + min(_REST_SECONDS * doubled, _REST_MAX_SECONDS), refuses_until)
            if not self._logged and self.in_a_row > 1 and now - self._since >= _LOGGED_SECONDS:
                self._logged = True
                _log.warning(
                    "%s has not answered for %.1f s (%s): requests wait, and one at a time tries again",
                    self._name,
                    now - self._since,
                    error.message,
                )
            return False

    def answered(self, ticket: Ticket) -> None:
        """The attempt was answered."""
        with self._lock:
            if ticket.failures != self.failures or not ticket.scores:
                return
            self._under_way -= 1
            if self._window < math.inf:
                self._window += 1
            if self._window > _WINDOW_MAX:
                self._window = math.inf
            if self._logged:
                _log.warning("%s answers again after %.1f s", self._name, monotonic() - self._since)
            self.in_a_row, self._logged, self._rests_until = 0, False, 0.0

    def left(self, ticket: Ticket, late: bool = False) -> None:
        """The attempt was given up. After one that was too `late`, other replicas are preferred for 1 s."""
        with self._lock:
            if ticket.failures == self.failures and ticket.scores:
                self._under_way -= 1
            if late:
                self._rests_until = max(self._rests_until, monotonic() + _REST_SECONDS)

    def rests(self) -> bool:
        """Whether other replicas are preferred now."""
        return monotonic() < self._rests_until

    def opens_at(self) -> float:
        """The time of the monotonic clock from which one request may try."""
        return self._opens_at

    def _spent(self, error: DensepathError) -> UnavailableError:
        return UnavailableError(
            f"the retry budget of {self._name} is spent ({RETRIES} retries, one more for each second and one "
            f"for every {REQUESTS_A_RETRY} requests): the service fails too often. "
            f"The last failure: {error.message}",
            retry_after=error.retry_after,
        )


def jitter(n: int) -> float:
    """A random number of seconds before attempt `n`, counted from 0. Its bound doubles (full jitter)."""
    bound = min(_JITTER_SECONDS * 2 ** min(n, 16), _JITTER_MAX_SECONDS)
    return random.uniform(0, bound)  # noqa: S311
