"""One request, and how its answer is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import httpx

from densepath.client.replicas import Replica
from densepath.wire import MEDIA_TYPE

T = TypeVar("T")


@dataclass(frozen=True)
class Exchange(Generic[T]):
    """A request to one of `replicas`, which are tried in this order."""

    method: str
    path: str
    replicas: tuple[Replica, ...]
    read: Callable[[httpx.Response], T]
    body: Callable[[], tuple[str, bytes]] | None = None  # media type and content; built when it is sent

    def content(self) -> tuple[dict[str, str], bytes | None]:
        """The headers and the content to send."""
        if self.body is None:
            return {}, None
        media_type, content = self.body()
        return {"Content-Type": media_type, "Accept": MEDIA_TYPE}, content
