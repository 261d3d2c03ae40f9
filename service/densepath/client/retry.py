"""The attempts of one request: to which replica each goes, and how long it waits after the one before.

Scoring is a pure function, so it is always safe to send a request again. It is sent again after 408, 429, 502
and 503, and when the connection fails. After a replica's failure it goes at once to the next replica that is
not skipped. If there is none, it waits for the rest of Retry-After plus a random time whose bound doubles
with each wait (full jitter). Then every replica may be tried again. After any other error the request is not
sent again, because the answer would be the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from densepath.client.exchange import Exchange
from densepath.client.patience import Patience
from densepath.client.replicas import Replica, choose
from densepath.errors import (
    DensepathError,
    InternalError,
    QuotaExceededError,
    RequestTimeoutError,
    UnavailableError,
)

ATTEMPTS = 6
"""How often a request is tried if there is no deadline. Attempts that go to another replica without a wait do
not count. With a deadline, a request is tried as often as there is time."""

_JITTER_SECONDS = 0.25
_JITTER_MAX_SECONDS = 8.0
_LOST = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)


class Sending:
    """An exchange that is being sent. It is also callable: the backoff hook of `stamina.retry_context`."""

    def __init__(self, exchange: Exchange[Any], patience: Patience) -> None:
        self._exchange, self._patience = exchange, patience
        self._headers, self._content = exchange.content()
        self._tried: set[Replica] = set()  # since the last wait
        self._waits = 0
        patience.requests += 1

    @contextmanager
    def attempt(self, timeout: httpx.Timeout) -> Iterator[dict[str, Any]]:
        """The arguments of httpx's `request`, for a `with` block that sends it and reads the answer.

        The outcome is recorded at the replica, and httpx's errors are raised as this package's errors.
        """
        replica = self._fresh() or choose(self._exchange.replicas)
        self._tried.add(replica)
        request = {
            "method": self._exchange.method,
            "url": replica.url + self._exchange.path,
            "content": self._content,
            "headers": self._headers | self._patience.headers(),
            "timeout": self._patience.timeout(timeout),
        }
        try:
            yield request
        except _LOST as error:
            replica.failed(None)
            reason = f"{type(error).__name__}, {replica.name}"
            raise UnavailableError(f"the connection to the service failed ({reason})") from error
        except httpx.RequestError as error:
            raise InternalError(f"the service's answer cannot be read ({type(error).__name__})") from error
        except DensepathError as error:
            if _of_replica(error):
                replica.failed(error.retry_after)
            else:
                replica.answered(error.retry_after)
            raise
        replica.answered(None)

    def __call__(self, error: Exception) -> bool | float:
        """The seconds to wait before the next attempt, or False if it would only repeat the error.

        Raises:
            DeadlineExceededError: another attempt would miss the deadline. Its cause is the error.
            UnavailableError: the retry budget is spent. Its cause is the error.
        """
        if not isinstance(error, (UnavailableError, RequestTimeoutError)):
            return False
        wait = 0.0
        if not _of_replica(error) or self._fresh() is None:
            if self._patience.seconds is None and self._waits == ATTEMPTS - 1:
                return False
            self._tried.clear()
            wait = choose(self._exchange.replicas).retry_after() + self._jitter()
        self._patience.spend(wait, error)
        return wait

    def _fresh(self) -> Replica | None:
        replicas = self._exchange.replicas
        return next((one for one in replicas if one not in self._tried and not one.rests()), None)

    def _jitter(self) -> float:
        bound = min(_JITTER_SECONDS * 2 ** min(self._waits, 16), _JITTER_MAX_SECONDS)
        self._waits += 1
        return random.uniform(0, bound)  # noqa: S311


def _of_replica(error: Exception) -> bool:
    """Whether another replica may help at once. A quota or a slow connection concerns the caller itself."""
    return isinstance(error, UnavailableError) and not isinstance(error, QuotaExceededError)
