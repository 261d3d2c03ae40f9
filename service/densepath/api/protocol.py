"""One connection: httptools with limits on headers, and a close that lets the client read its answer."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from densepath.errors import DensepathError, MalformedBodyError, RequestTimeoutError

HEADER_SECONDS = 10.0
HEADER_BYTES = 65_536
#: How long a client that is still sending may continue to send after its answer.
LINGER_SECONDS = 5.0


class BoundedProtocol(HttpToolsProtocol):  # type: ignore[misc]  # uvicorn's protocols are untyped here
    """httptools, which refuses smuggled requests, with bounds on the time and the size of headers.

    A header that drips in never reaches the application, so only the protocol can end it.
    """

    header_seconds = HEADER_SECONDS

    def connection_made(self, transport: Any) -> None:
        """A new connection: its first request must begin and end its headers in time."""
        super().connection_made(transport)
        # Requests of this connection close it through this.
        self.transport = self._closing = _LingeringTransport(transport, self.flow.resume_reading, self.loop)
        self._header_bytes = 0
        self._in_headers, self._begun = True, False
        self._headers_late = self.loop.call_later(self.header_seconds, self._refuse_late_headers)

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request. After the last answer they are thrown away."""
        if self._closing.is_closing():
            return
        self._begun = False
        super().data_received(data)
        if self._in_headers and not self._begun:  # all of these bytes are headers of one request
            self._header_bytes += len(data)
        if self._header_bytes > HEADER_BYTES:
            self._refuse(MalformedBodyError(f"the headers are over {HEADER_BYTES} bytes"))

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._header_bytes = 0
        self._in_headers = self._begun = True
        self._headers_late.cancel()
        self._headers_late = self.loop.call_later(self.header_seconds, self._refuse_late_headers)

    def on_headers_complete(self) -> None:
        """The headers have arrived completely."""
        self._headers_late.cancel()
        self._in_headers, self._closing.unread = False, True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body has arrived completely."""
        self._closing.unread = False
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is lost: stop every timer."""
        self._headers_late.cancel()
        self._closing.lost()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP, in the contract's shape."""
        self._refuse(MalformedBodyError("the request is not valid HTTP"))

    def _refuse_late_headers(self) -> None:
        self._refuse(
            RequestTimeoutError(f"the headers did not arrive within {self.header_seconds:g} seconds")
        )

    def _refuse(self, error: DensepathError) -> None:
        if self._closing.is_closing():
            return
        body = json.dumps({"error": error.detail()}).encode()
        status = {400: "400 Bad Request", 408: "408 Request Timeout"}[error.status]
        head = (
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {uuid.uuid4().hex}\r\nconnection: close\r\n\r\n"
        )
        self._closing.write(head.encode() + body)
        self._closing.unread = True
        self._closing.close()


class _LingeringTransport:
    """A transport whose `close` waits for a client that is still sending.

    Closing with unread bytes resets the connection, and the client then loses the answer with the reason. So
    the write side is closed first, and the rest once the client has closed or LINGER_SECONDS have passed.
    """

    def __init__(self, transport: Any, resume_reading: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._resume_reading, self._loop = transport, resume_reading, loop
        self._end: asyncio.TimerHandle | None = None
        self.unread = False  # whether part of a request has not arrived yet

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """True as soon as nothing more will be written."""
        return self._end is not None or bool(self._transport.is_closing())

    def close(self) -> None:
        """Close now, or after the client has closed."""
        if self.is_closing() or not self.unread:
            self._transport.close()
            return
        self._end = self._loop.call_later(LINGER_SECONDS, self._transport.close)
        self._transport.write_eof()
        self._resume_reading()

    def lost(self) -> None:
        """The connection is gone."""
        if self._end is not None:
            self._end.cancel()
