"""A deadline for what httpx does on a socket in this thread.

httpx limits each read, write and connect, but not all of them together: a service that sends one byte every
second, or one 1xx answer after another, is never late. Here each operation gets only the time that is left.
Asyncio needs none of this, because its tasks can be cancelled.
"""

from __future__ import annotations

import math
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import Any

import httpcore
import httpx

#: A slow reader takes a body in pieces; the deadline is looked at before each of them.
_PIECE_BYTES = 1 << 16

_end: ContextVar[float] = ContextVar("the deadline of what this thread sends", default=math.inf)


@contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """Everything in this block that uses a client with a deadline ends within so many seconds."""
    token = _end.set(math.inf if seconds is None else monotonic() + seconds)
    try:
        yield
    finally:
        _end.reset(token)


def keep_deadlines(client: httpx.Client) -> None:
    """Make the client's connections, to proxies too, keep to `within`. Other kinds of transports do not."""
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, httpx.HTTPTransport):
            # httpx has no public way to give a backend to its transports.
            transport._pool._network_backend = _Backend(transport._pool._network_backend)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, inner: httpcore.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        options = list(socket_options or ())
        late: Exception = httpcore.ConnectTimeout("no address of the name answered in time")
        if _end.get() == math.inf:
            return _Stream(self._inner.connect_tcp(host, port, timeout, local_address, options))
        for address in _addresses(host, port):
            try:
                left = _left(timeout, httpcore.ConnectTimeout)
                return _Stream(self._inner.connect_tcp(address, port, left, local_address, options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                late = error
        raise late

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.connect_unix_socket(path, left, socket_options))

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for at in range(0, len(buffer), _PIECE_BYTES):
            piece = buffer[at : at + _PIECE_BYTES]
            self._inner.write(piece, _left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            left = _left(timeout, httpcore.ConnectTimeout)
        except httpcore.ConnectTimeout:
            self.close()
            raise
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _left(timeout: float | None, late: type[Exception]) -> float | None:
    """The timeout of one operation: never longer than what is left."""
    end = _end.get()
    if end == math.inf:
        return timeout
    left = end - monotonic()
    if left <= 0:
        raise late("the deadline has passed")
    return left if timeout is None else min(timeout, left)


def _addresses(host: str, port: int) -> list[str]:
    """The addresses of a name. The system's resolver cannot be stopped, so a thread waits for it."""
    found: Future[list[str]] = Future()

    def resolve() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.set_result([str(info[4][0]) for info in infos])
        except OSError as error:
            found.set_exception(httpcore.ConnectError(str(error)))

    threading.Thread(target=resolve, name="densepath resolver", daemon=True).start()
    try:
        return found.result(_left(None, httpcore.ConnectTimeout))
    except TimeoutError as error:
        raise httpcore.ConnectTimeout("the name was not resolved in time") from error
