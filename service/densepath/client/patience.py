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
"""The retry budget of a call, for all of its requests together: this many retries, one more for every
REQUESTS_A_RETRY requests, and one more for every second that the call lasts. With the first term, four
requests at a time survive a restart of the service. The second limits the load that a call of a thousand
requests adds to a failing service."""
REQUESTS_A_RETRY = 5


class Patience:
    """What a whole call may take: seconds (retries included), and retries (of all its requests together).

    Raises:
        InvalidRequestError: `seconds` is not finite and above 0.
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
        """The seconds that are left, or None if there is no deadline.

        Raises:
            DeadlineExceededError: no time is left.
        """
        if self.seconds is None:
            return None
        left = self._end - monotonic()
        if left <= 0:
            raise self._exceeded()
        return left

    def timeout(self, timeout: httpx.Timeout) -> httpx.Timeout:
        """The same timeouts, each shortened to the time that is left."""
        left = self.left()
        if left is None:
            return timeout
        capped = {
            name: left if value is None else min(value, left) for name, value in timeout.as_dict().items()
        }
        return httpx.Timeout(**capped)

    def headers(self) -> dict[str, str]:
        """X-Request-Timeout, so that the service stops working when the caller no longer waits."""
        left = self.left()
        return {} if left is None else {"X-Request-Timeout": f"{max(left, 0.001):.3f}"}

    def spend(self, wait: float, error: UnavailableError | RequestTimeoutError) -> None:
        """Take one retry from the budget, to be sent `wait` seconds from now, after `error`.

        Raises:
            DeadlineExceededError: the retry would come after the deadline. It is raised without waiting.
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
