"""Plain load balancers before replicas: of connections, as a Kubernetes Service, or of requests, as nginx.

Both take the replicas in turn, ask no health of any, and repeat no request. Where a replica cannot be
connected to, they go on to the next, as nginx does by default.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import count

from client.fault_proxy import message

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Streams]]
Pass = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Connect], Awaitable[None]]

_BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>"


async def connections(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connect: Connect) -> None:
    """All bytes of one connection go to one replica, and what ends on one side ends on the other."""

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while part := await source.read(1 << 16):
            sink.write(part)
            await sink.drain()

    there, back = await connect()
    ways = [asyncio.create_task(copy(reader, back)), asyncio.create_task(copy(there, writer))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        back.transport.abort()


async def requests(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connect: Connect) -> None:
    """Each request goes to the next replica. One whose answer does not arrive is answered with 502."""
    while True:
        request = await message(reader)
        try:
            there, back = await connect()
            try:
                back.write(request)
                answer = await message(there)
            finally:
                back.transport.abort()
        except (OSError, asyncio.IncompleteReadError):
            answer = _BAD_GATEWAY
        writer.write(answer)
        await writer.drain()


@contextlib.contextmanager
def balanced(ports: Sequence[int], by: Pass) -> Iterator[str]:
    """The URL of a balancer before these ports of loopback, in a thread of its own."""
    turn, started = count(), threading.Event()
    urls: list[str] = []
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    tasks: set[asyncio.Task[None]] = set()

    async def connect() -> Streams:
        first = next(turn)
        for n in range(len(ports)):
            with contextlib.suppress(ConnectionError):
                return await asyncio.open_connection(
                    "127.0.0.1", ports[(first + n) % len(ports)], limit=1 << 24
                )
        raise ConnectionRefusedError("no replica can be connected to")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await by(reader, writer, connect)
        finally:
            writer.transport.abort()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def main() -> None:
        done = asyncio.Event()
        server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 24)
        urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        loops.append((asyncio.get_running_loop(), done))
        started.set()
        await done.wait()
        server.close()
        await asyncio.sleep(0)  # what has just been accepted is connected
        left = list(tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0)  # what is aborted is closed

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="balancer")
    thread.start()
    assert started.wait(timeout=30)
    try:
        yield urls[0]
    finally:
        loop, stop = loops[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=30)
        assert not thread.is_alive()
