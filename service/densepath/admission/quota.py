"""The token quotas of the keys: a client that asks for much is refused before it takes the others' turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from densepath.errors import QuotaExceededError

MINUTE = 60.0


class TokenQuotas:
    """Gives each key a balance of tokens that grows steadily, up to `tokens_per_minute`. For one event loop.

    A request may begin as long as the balance of its key is above 0. What it is then charged may take the
    balance below 0, so a request of any size can be answered. Without a quota, nothing is counted.
    """

    def __init__(
        self, tokens_per_minute: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.tokens_per_minute = tokens_per_minute
        self._clock = clock
        self._balances: dict[bytes, tuple[float, float]] = {}  # the key's hash: tokens, and when

    def ensure(self, key: bytes | None) -> None:
        """Raise QuotaExceededError, with the seconds until it is above 0, where the balance is used up."""
        if self.tokens_per_minute is None or key is None or (balance := self._balance(key)) > 0:
            return
        rate = self.tokens_per_minute / MINUTE
        raise QuotaExceededError(
            f"this key may have {self.tokens_per_minute} tokens scored per minute, and they are used up: "
            "send the request again after Retry-After",
            retry_after=math.floor(-balance / rate) + 1,
        )

    def charge(self, key: bytes | None, tokens: int) -> None:
        """Take the tokens of a request that will be scored from the balance of its key."""
        if self.tokens_per_minute is not None and key is not None:
            self._balances[key] = self._balance(key) - tokens, self._clock()

    def _balance(self, key: bytes) -> float:
        most = float(self.tokens_per_minute or 0)
        tokens, since = self._balances.get(key, (most, 0.0))
        return min(most, tokens + (self._clock() - since) * most / MINUTE)
