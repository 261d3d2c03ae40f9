"""One connection: httptools with limits on headers, and a close that lets the client read its answer."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import get_remote_addr

from densepath.api.edge import OPEN_ROUTES
from densepath.config import Limits
from densepath.errors import DensepathError, MalformedBodyError, OverloadedError, RequestTimeoutError

HEADER_SECONDS = 10.0
HEADER_BYTES = 65_536
#: How long a client that is still sending may continue to send after its answer.
LINGER_SECONDS = 5.0
#: A client that reads less than LEAST_READ_BYTES of its answer in this time is cut off.
WRITE_SECONDS = 30.0
LEAST_READ_BYTES = 65_536
#: So many connections beyond the limits are taken, for a probe or a 503, and for so long. The newest stay.
PROBE_CONNECTIONS = 16
PROBE_HEADER_SECONDS = 2.0


class BoundedProtocol(HttpToolsProtocol):  # type: ignore[misc]  # uvicorn's protocols are untyped here
    """httptools, which refuses smuggled requests, with bounds on what one connection may take.

    What never reaches the application can only be ended here: headers that drip in, trailers, blank lines,
    answers that nobody reads, and connections beyond the limit.
    """

    header_seconds = HEADER_SECONDS
    write_seconds = WRITE_SECONDS
    request_seconds = Limits.request_seconds
    max_connections = max_connections_per_address = 1 << 30

    def connection_made(self, transport: Any) -> None:
        """A new connection: its first request must begin and end its headers in time."""
        address = get_remote_addr(transport)
        others = [
            each for each in self.connections if address and each.client and each.client[0] == address[0]
        ]
        total = len(self.connections) - self.max_connections
        surplus = max(total, len(others) - self.max_connections_per_address)
        super().connection_made(transport)
        # Requests of this connection close it through this.
        self.transport = self._closing = _LingeringTransport(transport, self.flow.resume_reading, self.loop)
        self._bytes_without_progress = self._header_bytes = 0
        self._in_message = self._in_headers = self._keep = self._progress = False
        self._writes_late: asyncio.TimerHandle | None = None
        self._request_late: asyncio.TimerHandle | None = None
        self._only_probes, self._accepted = surplus >= 0, self.loop.time()
        crowd = self.connections if surplus == total else others
        if surplus >= PROBE_CONNECTIONS:
            _end_oldest_probe(crowd)
        elif surplus >= 0:
            _make_room(crowd)
        seconds = PROBE_HEADER_SECONDS if self._only_probes else self.header_seconds
        self._headers_late: asyncio.TimerHandle | None = self.loop.call_later(seconds, self._refuse_late)

    @property
    def resting(self) -> bool:
        """Whether the last request was answered and no other has begun."""
        return not self._in_message and self.cycle is not None and bool(self.cycle.response_complete)

    @property
    def _all_read(self) -> bool:
        """Whether it rests, and the client has read the last answer."""
        return self.resting and not self.transport.get_write_buffer_size()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request. After the last answer they are thrown away."""
        if self._closing.is_closing():
            return
        self._progress = False
        super().data_received(data)
        # Headers, trailers, the lengths of chunks and blank lines are bounded together: all but the body is.
        self._bytes_without_progress = 0 if self._progress else self._bytes_without_progress + len(data)
        if max(self._bytes_without_progress, self._header_bytes) > HEADER_BYTES:
            self._refuse(MalformedBodyError(f"the headers or trailers are over {HEADER_BYTES} bytes"))
        elif not self._in_message and not self._progress and self._headers_late is None:
            self._wait_for_headers()  # a blank line on a connection that rested

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._request_late is None or self._all_read:
            self._limit_request()
        super().on_message_begin()
        self._header_bytes = 0
        self._in_message = self._in_headers = self._progress = True
        if not self._only_probes:
            self._wait_for_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header. What comes after the body, a trailer, is thrown away."""
        self._header_bytes += len(name) + len(value)
        if self._in_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The headers have arrived completely."""
        self._stop_waiting_for_headers()
        self._in_headers, self._closing.unread = False, True
        if self._header_bytes > HEADER_BYTES:
            return  # refused as soon as the parser has returned
        self._header_bytes = 0
        if self._only_probes and self.url.partition(b"?")[0].decode("latin-1") not in OPEN_ROUTES:
            self._refuse(OverloadedError("the service has no room for another connection", retry_after=1))
            return
        super().on_headers_complete()
        # An answer that begins before the body is complete closes the connection: the rest stays unread.
        self._keep, self.cycle.keep_alive = self.cycle.keep_alive and not self._only_probes, False

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if not self._closing.is_closing():
            self._progress = True
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The body has arrived completely."""
        if self._closing.is_closing():
            return
        self._in_message, self._closing.unread, self._progress = False, False, True
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keep
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer has been written, as far as the client reads it."""
        self._watch_writes()
        if self.pipeline:  # the next request has arrived already
            self._limit_request()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client reads more slowly than the answer is written."""
        super().pause_writing()
        self._watch_writes()

    def shutdown(self) -> None:
        """The service ends: close after the current answer."""
        self._keep = False
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is lost: stop every timer."""
        self._stop_waiting_for_headers()
        for timer in (self._writes_late, self._request_late):
            if timer is not None:
                timer.cancel()
        self._closing.lost()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP, in the contract's shape."""
        self._refuse(MalformedBodyError("the request is not valid HTTP"))

    def _wait_for_headers(self) -> None:
        self._stop_waiting_for_headers()
        self._headers_late = self.loop.call_later(self.header_seconds, self._refuse_late)

    def _stop_waiting_for_headers(self) -> None:
        if self._headers_late is not None:
            self._headers_late.cancel()
            self._headers_late = None

    def _limit_request(self) -> None:
        """Bound a request in total: the application ends it in time, and then its answer must be read."""
        if self._request_late is not None:
            self._request_late.cancel()
        seconds = self.header_seconds + self.request_seconds + self.write_seconds
        self._request_late = self.loop.call_later(seconds, self._end_request)

    def _end_request(self) -> None:
        if not self._all_read and not self.url.startswith(b"/admin/"):
            self.transport.abort()

    def _watch_writes(self) -> None:
        """Every `write_seconds`, a client must have read a part of what waits for it, or it is cut off."""
        if self._writes_late is None and (waiting := self.transport.get_write_buffer_size()):
            self._writes_late = self.loop.call_later(self.write_seconds, self._check_writes, waiting)

    def _check_writes(self, waited: int) -> None:
        self._writes_late = None
        waits = self.transport.get_write_buffer_size()
        if waits and waited - waits < LEAST_READ_BYTES:
            self.transport.abort()
        self._watch_writes()

    def _refuse_late(self) -> None:
        self._refuse(
            RequestTimeoutError(f"the headers did not arrive within {self.header_seconds:g} seconds")
        )

    def _refuse(self, error: DensepathError) -> None:
        if self._closing.is_closing():
            return
        body = json.dumps({"error": error.detail()}).encode()
        status = f"{error.status} {HTTPStatus(error.status).phrase}"
        retry = "" if error.retry_after is None else f"retry-after: {error.retry_after}\r\n"
        head = (
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {uuid.uuid4().hex}\r\n{retry}connection: close\r\n\r\n"
        )
        self._closing.write(head.encode() + body)
        self._closing.unread = True
        self._closing.close()


def _make_room(connections: Iterable[BoundedProtocol]) -> None:
    """Close a connection that rests, for a new one."""
    for each in connections:
        if each.resting:
            each.shutdown()
            return


def _end_oldest_probe(connections: Iterable[BoundedProtocol]) -> None:
    """End the oldest connection that was taken for a probe: a probe is quick, so that one is none."""
    probes = [each for each in connections if each._only_probes and not each.transport.ended]
    if probes:
        min(probes, key=lambda each: each._accepted).transport.abort()


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

    @property
    def ended(self) -> bool:
        """True when nothing is read any more either."""
        return bool(self._transport.is_closing())

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
