"""The attempts of one request: to which replica each goes, and how long it waits before it is sent.

Scoring is a pure function, so it is always safe to send a request again. It is sent again after 408, 429, 502
and 503, and when the connection fails. After a replica's failure it goes at once to the next replica that is
not skipped. If there is none, it waits until the gate of a replica opens. After 408 and 429, which concern
the caller itself, it waits for Retry-After and a random time. After any other error it is not sent again,
because the answer would be the same. A replica that serves another pair version than the one that is asked
for is left out, and the next is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import httpx

from densepath.client.exchange import Exchange
from densepath.client.gate import RETRY_AFTER_MAX_SECONDS, Ticket, jitter
from densepath.client.patience import Patience
from densepath.client.replicas import Replica, choose
from densepath.errors import (
    DeadlineExceededError,
    DensepathError,
    InternalError,
    ModelVersionMismatchError,
    QuotaExceededError,
    RequestTimeoutError,
    UnavailableError,
)

ATTEMPTS = 6
"""How many failures of each replica a request without a deadline waits through. While it waits, the failed
attempts of other requests count as well. With a deadline, a request is tried as often as there is time."""

_LOST = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)


class Sending:
    """An exchange that is being sent: wait as long as `wait` says, then make an `attempt`, and so on."""

    def __init__(self, exchange: Exchange[Any], patience: Patience) -> None:
        self._exchange, self._patience = exchange, patience
        self._headers, self._content = exchange.content()
        self._tried: set[Replica] = set()  # since the last wait
        self._others: set[Replica] = set()  # they serve another pair version
        self._entered: tuple[Replica, Ticket] | None = None
        self._error: DensepathError | None = None  # of its last attempt
        self._own_failures = self._seen_failures = self._refusals = 0
        self._counted = self._count()
        self._not_before = 0.0
        self._retry_is_free = self._had_free_retry = False

    def wait(self) -> float:
        """The seconds to wait before asking again. 0: make the attempt now.

        Raises:
            DeadlineExceededError: the attempt would miss the deadline. Its cause is the last failure.
            UnavailableError: the retry budget is spent. Its cause is the last failure.
            DensepathError: the last failure, if there were too many.
        """
        own = max(0.0, self._not_before - monotonic())
        if self._allowed(own):
            return own
        self._give_up_after_too_many()
        replicas = [one for one in self._exchange.replicas if one not in self._others]
        fresh = [one for one in replicas if one not in self._tried and not one.gate.rests()]
        if not fresh:
            self._tried.clear()
        waits = []
        for replica in fresh or [choose(replicas)]:
            ticket = replica.gate.enter(self._exchange.scores, None if self._retry_is_free else self._error)
            if isinstance(ticket, Ticket):
                self._entered = replica, ticket
                return 0.0
            waits.append(ticket)
        return self._allowed(min(waits))

    @contextmanager
    def attempt(self, timeout: httpx.Timeout) -> Iterator[dict[str, Any]]:
        """The arguments of httpx's `stream`, for a `with` block that sends it, reads the answer and returns.

        The outcome is recorded at the replica. The block goes on after its end if the request is to be sent
        again. Otherwise the error is raised, and httpx's errors are raised as this package's errors.
        """
        if self._entered is None:
            raise RuntimeError("an attempt is made after wait() has returned 0")
        (replica, ticket), self._entered = self._entered, None
        self._tried.add(replica)
        gate = replica.gate
        try:
            yield {
                "method": self._exchange.method,
                "url": replica.url + self._exchange.path,
                "content": self._content,
                "headers": self._headers | self._patience.headers() | replica.headers(),
                "timeout": self._patience.timeout(timeout),
            }
        except _LOST as lost:
            if not self._patience.allows(0):
                gate.left(ticket, late=True)
                raise self._patience.exceeded() from lost
            reason = f"{type(lost).__name__}, {replica.name}"
            error = UnavailableError(f"the connection to the service failed ({reason})")
            error.__cause__ = lost
            self._failed(replica, ticket, error)
        except httpx.RequestError as lost:
            gate.answered(ticket)
            raise InternalError(f"the service's answer cannot be read ({type(lost).__name__})") from lost
        except DensepathError as error:
            self._answered(replica, ticket, error)
        except TimeoutError:  # of asyncio.timeout
            gate.left(ticket, late=True)
            raise self._patience.exceeded() from self._error
        except BaseException:
            gate.left(ticket)
            raise
        else:
            gate.answered(ticket)

    def _answered(self, replica: Replica, ticket: Ticket, error: DensepathError) -> None:
        """An answer that is an error. It is raised, unless the request is to be sent again."""
        if isinstance(error, DeadlineExceededError) and not self._patience.allows(0):
            replica.gate.left(ticket, late=True)
            raise error
        if isinstance(error, UnavailableError) and not isinstance(error, QuotaExceededError):
            self._failed(replica, ticket, error)
            return
        replica.gate.answered(ticket)
        if isinstance(error, ModelVersionMismatchError):
            self._another_version(replica, error)
            return
        if not isinstance(error, (QuotaExceededError, RequestTimeoutError)):
            raise error
        self._error, self._retry_is_free = error, False
        self._tried.clear()  # another replica would not help
        self._own_failures += len(self._exchange.replicas)
        wait = min(error.retry_after or 0, RETRY_AFTER_MAX_SECONDS) + jitter(self._refusals)
        self._refusals += 1
        self._not_before = monotonic() + wait

    def _another_version(self, replica: Replica, error: ModelVersionMismatchError) -> None:
        """Another replica may serve the version: one with a URL of its own, or one behind the same URL."""
        self._others.add(replica)
        n_replicas = len(self._exchange.replicas)
        if len(self._others) == n_replicas:
            self._refusals += 1
            if n_replicas > 1 or not self._exchange.again or self._refusals == ATTEMPTS:
                raise error
            self._others.clear()
            self._not_before = monotonic() + jitter(self._refusals)
        self._error, self._retry_is_free = error, True

    def _failed(self, replica: Replica, ticket: Ticket, error: DensepathError) -> None:
        nobody_knew = replica.gate.failed(ticket, error)
        self._error = error
        self._own_failures += 1
        self._seen_failures += 1
        self._counted = self._count()  # what failed beside its own attempt does not count
        self._retry_is_free = nobody_knew and not self._had_free_retry
        self._had_free_retry |= self._retry_is_free

    def _give_up_after_too_many(self) -> None:
        count = self._count()
        self._seen_failures += count - self._counted
        self._counted = count
        replicas = self._exchange.replicas
        bound = ATTEMPTS * len(replicas)
        seen = min(self._seen_failures, sum(replica.gate.in_a_row for replica in replicas))
        if self._patience.seconds is None and max(self._own_failures, seen) >= bound:
            last = self._error or choose(replicas).gate.last
            assert last is not None  # noqa: S101  # a failure was counted
            raise last if last is self._error else type(last)(last.message, retry_after=last.retry_after)

    def _allowed(self, wait: float) -> float:
        if not self._patience.allows(wait):
            raise self._patience.exceeded() from self._error or choose(self._exchange.replicas).gate.last
        return wait

    def _count(self) -> int:
        return sum(replica.gate.failures for replica in self._exchange.replicas)
