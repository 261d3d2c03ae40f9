"""The deadline of a call."""

from __future__ import annotations

import math
from time import monotonic

import httpx

from densepath.errors import DeadlineExceededError, InvalidRequestError


class Patience:
    """How many seconds a whole call may take, retries included.

    Raises:
        InvalidRequestError: `seconds` is not finite and above 0.
    """

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and not 0 < seconds < math.inf:
            raise InvalidRequestError("deadline must be a number of seconds above 0, or None")
        self.seconds = seconds
        self._end = math.inf if seconds is None else monotonic() + seconds

    def left(self) -> float | None:
        """The seconds that are left, or None if there is no deadline.

        Raises:
            DeadlineExceededError: no time is left.
        """
        if self.seconds is None:
            return None
        left = self._end - monotonic()
        if left <= 0:
            raise self.exceeded()
        return left

    def timeout(self, timeout: httpx.Timeout) -> httpx.Timeout:
        """The same timeouts, each shortened to the time that is left; that of a connect is a little shorter.

        httpx closes a connection whose TLS handshake is too late, but not one whose handshake is cancelled.
        """
        left = self.left()
        if left is None:
            return timeout
        capped = {
            name: left if value is None else min(value, left) for name, value in timeout.as_dict().items()
        }
        if capped["connect"] is not None:
            capped["connect"] = min(capped["connect"], 0.95 * left)
        return httpx.Timeout(**capped)

    def headers(self) -> dict[str, str]:
        """X-Request-Timeout, so that the service stops working when the caller no longer waits."""
        left = self.left()
        return {} if left is None else {"X-Request-Timeout": f"{max(left, 0.001):.3f}"}

    def allows(self, wait: float) -> bool:
        """Whether time is left after a wait of so many seconds."""
        return monotonic() + wait < self._end

    def exceeded(self) -> DeadlineExceededError:
        """The error of this deadline."""
        return DeadlineExceededError(f"no answer within the deadline of {self.seconds:g} s")
