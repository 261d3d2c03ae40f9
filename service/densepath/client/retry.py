"""The deadline of a call, and when a request is sent again.

Scoring is a pure function, so sending a request again is always safe. It is sent again after 408, 429, 502
and 503 and when the connection fails: once Retry-After has passed, or at once where there is none, plus a
random wait whose bound doubles each time (full jitter). Nothing else is: the answer would be the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import httpx

from densepath.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    RequestTimeoutError,
    UnavailableError,
)

ATTEMPTS = 6
"""How often a request is sent where there is no deadline; with one, as often as there is time."""

_JITTER_SECONDS = 0.25
_JITTER_MAX_SECONDS = 8.0
_LOST = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)


class Deadline:
    """The time that a whole call may take, its retries included.

    Raises:
        InvalidRequestError: seconds that are not finite and above 0.
    """

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and not 0 < seconds < math.inf:
            raise InvalidRequestError("deadline must be a number of seconds above 0, or None")
        self.seconds = seconds
        self.attempts = ATTEMPTS if seconds is None else None
        self._end = None if seconds is None else monotonic() + seconds

    def allows(self, wait: float) -> bool:
        """Whether there is time left after so many seconds."""
        return self._end is None or monotonic() + wait < self._end

    def left(self) -> float | None:
        """The seconds that are left, or None for no deadline.

        Raises:
            DeadlineExceededError: none are left.
        """
        if self._end is None:
            return None
        left = self._end - monotonic()
        if left <= 0:
            raise self.exceeded()
        return left

    def exceeded(self) -> DeadlineExceededError:
        """The error of a call that has run out of time."""
        return DeadlineExceededError(f"no answer within the deadline of {self.seconds:g} s")

    def timeout(self, timeout: httpx.Timeout) -> httpx.Timeout:
        """The same timeouts, none of them longer than what is left."""
        left = self.left()
        if left is None:
            return timeout
        capped = {
            name: left if value is None else min(value, left) for name, value in timeout.as_dict().items()
        }
        return httpx.Timeout(**capped)

    def headers(self) -> dict[str, str]:
        """X-Request-Timeout, so that the service stops working when nobody waits any more."""
        left = self.left()
        return {} if left is None else {"X-Request-Timeout": f"{max(left, 0.001):.3f}"}


class Backoff:
    """The backoff hook of `stamina.retry_context`: False, or the seconds to wait before the next attempt.

    Raises DeadlineExceededError, its cause the last failure, as soon as no further attempt fits the deadline.
    """

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._bound = _JITTER_SECONDS

    def __call__(self, error: Exception) -> bool | float:
        """False for an error that another attempt would only repeat."""
        if not isinstance(error, (UnavailableError, RequestTimeoutError)):
            return False
        wait = (error.retry_after or 0) + random.uniform(0, self._bound)  # noqa: S311
        self._bound = min(2 * self._bound, _JITTER_MAX_SECONDS)
        if not self._deadline.allows(wait):
            raise self._deadline.exceeded() from error  # at once: waiting for it helps nobody
        return wait


@contextmanager
def connection_errors(deadline: Deadline) -> Iterator[None]:
    """Raise httpx's errors as this package's; a read that the deadline cut short is the deadline's."""
    try:
        yield
    except _LOST as error:
        deadline.left()
        kind = type(error).__name__
        raise UnavailableError(f"the connection to the service failed ({kind})") from error
    except httpx.RequestError as error:
        raise InternalError(f"the service's answer cannot be read ({type(error).__name__})") from error
