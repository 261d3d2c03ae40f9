"""The deadline of a call, and its budget of retries."""

from __future__ import annotations

import math
from time import monotonic

import httpx

from densepath.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    RequestTimeoutError,
    UnavailableError,
)

RETRIES = 32
"""The retry budget of a call, all its requests together: so many, one more for every REQUESTS_A_RETRY
requests and one more for every second that it lasts. The first lets four requests under way ride out a
restart together; the second keeps a call of a thousand requests from multiplying the load on a service that
fails."""
REQUESTS_A_RETRY = 5


class Patience:
    """What a whole call may take: seconds, its retries included, and retries, all its requests together.

    Raises:
        InvalidRequestError: seconds that are not finite and above 0.
    """

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and not 0 < seconds < math.inf:
            raise InvalidRequestError("deadline must be a number of seconds above 0, or None")
        self.seconds = seconds
        self.requests = 0
        self.retries = 0
        self._start = monotonic()
        self._end = math.inf if seconds is None else self._start + seconds

    def left(self) -> float | None:
        """The seconds that are left, or None for no deadline.

        Raises:
            DeadlineExceededError: none are left.
        """
        if self.seconds is None:
            return None
        left = self._end - monotonic()
        if left <= 0:
            raise self._exceeded()
        return left

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

    def spend(self, wait: float, error: UnavailableError | RequestTimeoutError) -> None:
        """Take one retry, `seconds` from now, after the error.

        Raises:
            DeadlineExceededError: it would come too late. At once: waiting for it helps nobody.
            UnavailableError: the budget is spent.
        """
        if monotonic() + wait >= self._end:
            raise self._exceeded() from error
        if self.retries >= self._budget():
            raise UnavailableError(
                f"the retry budget of this call is spent ({self.retries} retries for {self.requests} "
                f"requests): the service fails too often. The last failure: {error.message}",
                retry_after=error.retry_after,
            ) from error
        self.retries += 1

    def _budget(self) -> int:
        return RETRIES + self.requests // REQUESTS_A_RETRY + int(monotonic() - self._start)

    def _exceeded(self) -> DeadlineExceededError:
        return DeadlineExceededError(f"no answer within the deadline of {self.seconds:g} s")
