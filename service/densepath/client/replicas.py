"""The replicas of a service: which one a prompt belongs to, and which one is skipped for a while.

A prompt belongs to the replica that rendezvous hashing ranks first for it, so that its rollouts find their
prefix cached there. When a replica fails, only its own prompts move, each to the next replica in its order.

Health is passive: a replica that fails is skipped for 1 s. Each time that it is tried again and fails, it is
skipped for twice as long, up to 30 s, and never for less than its Retry-After. If every replica is skipped,
the one whose time ends first is tried. Any answer ends the skipping.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from time import monotonic

import httpx

from densepath.errors import InvalidRequestError

_REST_SECONDS = 1.0
_REST_MAX_SECONDS = 30.0


class Replica:
    """One service. Threads may share it: if one overwrites another's update, the next answer corrects it."""

    def __init__(self, url: httpx.URL) -> None:
        self.url = str(url).rstrip("/")
        self.name = url.netloc.decode("ascii")  # without the user and password that a URL may hold
        self._salt = hashlib.blake2b(self.url.encode()).digest()
        self._failures = 0  # in a row
        self._rests_until = 0.0
        self._refuses_until = 0.0

    def weight(self, key: bytes) -> bytes:
        """The weight by which rendezvous hashing ranks the replicas for a key."""
        return hashlib.blake2b(key, key=self._salt, digest_size=16).digest()

    def failed(self, retry_after: int | None) -> None:
        """Skip it for a while. Failures of requests that ran at the same time count as one."""
        self._failures += not self.rests()
        rest = min(_REST_SECONDS * 2 ** min(self._failures - 1, 16), _REST_MAX_SECONDS)
        now = monotonic()
        self._refuses_until = now + (retry_after or 0)
        self._rests_until = max(now + rest, self._refuses_until)

    def answered(self, retry_after: int | None) -> None:
        """Note that it has answered, possibly with a Retry-After."""
        self._failures, self._rests_until = 0, 0.0
        self._refuses_until = monotonic() + (retry_after or 0)

    def rests(self) -> bool:
        """Whether it is skipped now."""
        return monotonic() < self._rests_until

    def retry_after(self) -> float:
        """How many seconds of its last Retry-After are left."""
        return max(0.0, self._refuses_until - monotonic())

    def back(self) -> float:
        """The time of the monotonic clock until which it is skipped."""
        return self._rests_until


class Replicas:
    """The replicas of one service. The order of their URLs does not matter.

    Raises:
        InvalidRequestError: there is no URL, or one that cannot be used in a request.
    """

    def __init__(self, base_url: str | Sequence[str]) -> None:
        urls = [base_url] if isinstance(base_url, str) else base_url
        self._all = tuple({url: Replica(url) for url in map(_url, urls)}.values())
        if not self._all:
            raise InvalidRequestError("base_url names no service: give at least one URL", param="base_url")

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._all)

    def order(self, key: bytes) -> tuple[Replica, ...]:
        """The order in which they are tried for a key. Those that are skipped now come last."""
        if len(self._all) == 1:
            return self._all
        ranked = sorted(self._all, key=lambda replica: replica.weight(key), reverse=True)
        return tuple(sorted(ranked, key=Replica.rests))


def choose(order: Sequence[Replica]) -> Replica:
    """The first that is not skipped. If all are, the one whose skipping ends first."""
    return next((replica for replica in order if not replica.rests()), min(order, key=Replica.back))


def _url(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError):
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise InvalidRequestError("base_url must be like http://127.0.0.1:8000", param="base_url")
    return url
