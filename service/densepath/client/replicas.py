"""The replicas of a service: which one a prompt belongs to, and which one is skipped for a while.

A prompt belongs to the replica that rendezvous hashing ranks first for it, so that its rollouts find their
prefix cached there. When a replica fails, only its own prompts move, each to the next replica in its order.

Health is passive: a replica that fails is skipped for 1 s. Each time that it is tried again and fails, it is
skipped for twice as long, up to 30 s, and never for less than its Retry-After (at most 60 s of it). If every
replica is skipped, requests wait for the one whose gate opens first. An answer ends the skipping.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count

import httpx

from densepath.client.gate import Gate
from densepath.errors import InvalidRequestError

REQUESTS_A_CONNECTION = 100


class Replica:
    """One service. All clients of a process share it, so what one has learnt the others know."""

    def __init__(self, url: httpx.URL) -> None:
        self.url = str(url).rstrip("/")
        self.name = url.netloc.decode("ascii")  # without the user and password that a URL may hold
        self.gate = Gate(self.name)
        self._salt = hashlib.blake2b(self.url.encode()).digest()
        self._sent = count(1)

    def headers(self) -> dict[str, str]:
        """The headers of the next request. One in REQUESTS_A_CONNECTION closes its connection.

        A URL may stand for many replicas behind a load balancer of connections, such as a Kubernetes Service.
        A new replica gets only new connections, and those that are in use would stay where they are.
        """
        last = next(self._sent) % REQUESTS_A_CONNECTION == 0
        return {"Connection": "close"} if last else {}

    def weight(self, key: bytes) -> bytes:
        """The weight by which rendezvous hashing ranks the replicas for a key."""
        return hashlib.blake2b(key, key=self._salt, digest_size=16).digest()


class Replicas:
    """The replicas of one service. The order of their URLs does not matter.

    Raises:
        InvalidRequestError: there is no URL, or one that cannot be used in a request.
    """

    def __init__(self, base_url: str | Sequence[str]) -> None:
        urls = [base_url] if isinstance(base_url, str) else base_url
        self._all = tuple({url: _replica(url) for url in map(_url, urls)}.values())
        if not self._all:
            raise InvalidRequestError("base_url names no service: give at least one URL", param="base_url")

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._all)

    def order(self, key: bytes) -> tuple[Replica, ...]:
        """The order in which they are tried for a key. Those that are skipped now come last."""
        if len(self._all) == 1:
            return self._all
        ranked = sorted(self._all, key=lambda replica: replica.weight(key), reverse=True)
        return tuple(sorted(ranked, key=lambda replica: replica.gate.rests()))


def choose(order: Sequence[Replica]) -> Replica:
    """The first that is not skipped. If all are, the one whose gate opens first."""
    awake = (replica for replica in order if not replica.gate.rests())
    return next(awake, min(order, key=lambda replica: replica.gate.opens_at()))


@lru_cache(maxsize=1024)
def _replica(url: httpx.URL) -> Replica:
    return Replica(url)


# A child of a fork may have got a lock that another thread held, so it starts with gates of its own.
os.register_at_fork(after_in_child=_replica.cache_clear)


def _url(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError):
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise InvalidRequestError("base_url must be like http://127.0.0.1:8000", param="base_url")
    return url
