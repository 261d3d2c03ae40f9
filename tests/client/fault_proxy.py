"""A TCP proxy between a client and a service that fails as networks do, one fault an attempt."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fault:
    """What happens to one attempt; by default nothing."""

    delay: float = 0.0  # seconds before the answer
    lost: bool = False  # the request never reaches the service
    cut_after: int | None = None  # bytes of the answer that still pass; then the connection ends
    reset: bool = False  # it ends with a reset instead of an orderly close
    instead: bytes | None = None  # this answer, and the service is not asked


def unavailable(status: str = "503 Service Unavailable", body: bytes = b"", *headers: str) -> Fault:
    """A storm's answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return Fault(instead="\r\n".join(lines).encode() + body)


@dataclass
class FaultProxy:
    """The proxy at `url`; each attempt takes the next of `faults`, and when none is left, nothing fails."""

    upstream: int
    faults: list[Fault] = field(default_factory=list)
    attempts: int = 0
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request."""
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await message(reader)
        self.attempts += 1
        fault = self.faults.pop(0) if self.faults else Fault()
        if fault.instead is not None:
            answer = fault.instead
        elif fault.lost:
            answer = b""
        else:
            answer = await self._ask(request)
        await asyncio.sleep(fault.delay)
        whole = not fault.lost and fault.cut_after is None
        writer.write(answer if fault.cut_after is None else answer[: fault.cut_after])
        await writer.drain()
        if not whole and fault.reset:
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        return whole

    async def _ask(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        try:
            writer.write(request)
            return await message(reader)
        finally:
            writer.close()
            await writer.wait_closed()


async def message(reader: asyncio.StreamReader) -> bytes:
    """A whole request or answer: its head, and as much body as the head says."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)\r\n", head)
    return head + (await reader.readexactly(int(length[1])) if length else b"")


@contextlib.contextmanager
def fault_proxy(upstream: int) -> Iterator[FaultProxy]:
    """A proxy before the service on a port of loopback, in a thread of its own."""
    proxy = FaultProxy(upstream)
    started = threading.Event()
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def main() -> None:
        done, writers, tasks = asyncio.Event(), [], set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            tasks.add(asyncio.create_task(proxy.serve(reader, writer)))

        server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 24)
        proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        loops.append((asyncio.get_running_loop(), done))
        started.set()
        await done.wait()
        server.close()
        await asyncio.sleep(0)  # what has just been accepted is connected
        for task in tasks:
            task.cancel()
        for writer in writers:
            writer.transport.abort()  # a task that never began closes nothing
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="fault proxy")
    thread.start()
    assert started.wait(timeout=30)
    try:
        yield proxy
    finally:
        loop, done = loops[0]
        loop.call_soon_threadsafe(done.set)
        thread.join(timeout=30)
        assert not thread.is_alive()
