"""HTTP over bare asyncio: one connection for each request, and exactly one answer on it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import perf_counter

from densepath.wire import JSON_MEDIA_TYPE

ANSWERED_WITHIN = 120.0  # seconds


class BrokenAnswerError(Exception):
    """A connection ended without one whole answer, or with more than one."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, and the seconds from before the connect to its last byte."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


def request(
    path: str,
    content: bytes = b"",
    *,
    method: str = "POST",
    content_type: str | None = JSON_MEDIA_TYPE,
    headers: dict[str, str] | None = None,
) -> bytes:
    """The bytes of a request that asks to close the connection after its answer."""
    lines = {"Host": "localhost", "Connection": "close", "Content-Length": str(len(content))}
    if content_type is not None:
        lines["Content-Type"] = content_type
    lines |= headers or {}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content


class Receiver(asyncio.Protocol):
    """Sends the bytes of one request, and receives until the service closes the connection."""

    def __init__(self, sent: bytes) -> None:
        self._sent = sent
        self.received = bytearray()
        self.last_byte_at = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._sent)

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.last_byte_at = perf_counter()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            if exc is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(exc)


async def ask(port: int, sent: bytes, *, within: float = ANSWERED_WITHIN) -> Answer:
    """Send a request and return its answer.

    Raises BrokenAnswerError, OSError (a connection that is refused or reset) or TimeoutError.
    """
    began = perf_counter()
    async with asyncio.timeout(within):
        transport, receiver = await asyncio.get_running_loop().create_connection(
            lambda: Receiver(sent), "127.0.0.1", port
        )
        try:
            await receiver.ended
        finally:
            transport.abort()
    return read_answer(bytes(receiver.received), receiver.last_byte_at - began)


def read_answer(received: bytes, seconds: float) -> Answer:
    """The one answer in everything that a connection has received."""
    head, blank, body = received.partition(b"\r\n\r\n")
    if not blank or not head.startswith(b"HTTP/1.1 "):
        raise BrokenAnswerError(f"{len(received)} bytes without the head of an answer: {received[:80]!r}")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    declared = headers.get("content-length")
    if declared is None or int(declared) != len(body):
        raise BrokenAnswerError(f"an answer of {declared} bytes came as {len(body)} bytes")
    return Answer(int(first.split()[1]), headers, body, seconds)
