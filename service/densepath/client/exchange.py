"""One request, and how its answer is received and read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import httpx

from densepath.client.patience import Patience
from densepath.client.replicas import Replica
from densepath.errors import InternalError
from densepath.wire import MEDIA_TYPE

MAX_BYTES = 1 << 20
"""The largest answer of a request that does not say otherwise, and the largest answer that is an error."""

T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    """An answer that has arrived as a whole."""

    status_code: int
    headers: httpx.Headers
    url: httpx.URL
    content: bytes


@dataclass(frozen=True)
class Exchange(Generic[T]):
    """A request to one of `replicas`, which are tried in this order."""

    method: str
    path: str
    replicas: tuple[Replica, ...]
    read: Callable[[Reply], T]
    body: Callable[[], tuple[str, bytes]] | None = None  # media type and content; built when it is sent
    max_bytes: int = MAX_BYTES  # of its answer
    scores: bool = False  # whether an answer shows that the replica can score
    again: bool = False  # whether it asks for a pair version that its URL has just answered with

    def content(self) -> tuple[dict[str, str], bytes | None]:
        """The headers and the content to send."""
        if self.body is None:
            return {}, None
        media_type, content = self.body()
        return {"Content-Type": media_type, "Accept": MEDIA_TYPE}, content


class Incoming:
    """The answer of an exchange while it arrives. Its size and the deadline are checked with each part.

    Raises:
        InternalError: the answer is larger than what was asked for can be.
    """

    def __init__(self, response: httpx.Response, exchange: Exchange[object], patience: Patience) -> None:
        self._response, self._patience = response, patience
        self._max_bytes = exchange.max_bytes if response.status_code == 200 else MAX_BYTES
        self._parts: list[bytes] = []
        self._n_bytes = 0
        declared = response.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self._max_bytes:
            raise self._too_large()

    def add(self, part: bytes) -> None:
        """Take the next part.

        Raises:
            InternalError: the answer is larger than what was asked for can be.
            DeadlineExceededError: no time is left.
        """
        self._patience.left()
        self._n_bytes += len(part)
        if self._n_bytes > self._max_bytes:
            raise self._too_large()
        self._parts.append(part)

    def whole(self) -> Reply:
        """The answer, once its last part has arrived."""
        response = self._response
        return Reply(response.status_code, response.headers, response.url, b"".join(self._parts))

    def _too_large(self) -> InternalError:
        return InternalError(
            f"the service's answer is larger than {self._max_bytes} bytes, the most that the answer of this "
            "request can have"
        )
