"""Running the application with uvicorn, and draining it without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Iterator

import structlog
import uvicorn
from fastapi import FastAPI

from densepath.api.lifecycle import Lifecycle, Phase
from densepath.api.listener import BACKLOG
from densepath.api.protocol import PROBE_CONNECTIONS, BoundedProtocol
from densepath.api.service import Service
from densepath.config import Limits

#: After the drain time, so that the last answers (503 `draining`) reach their clients.
LAST_WORDS_SECONDS = 1.0
#: After that, for clients that read their answers slowly.
SLOW_READER_SECONDS = 2

#: So many connections may be open for a moment although there is no room for them.
ACCEPTED_AT_ONCE = 8

#: From the loss of the last engine to the end of the process, so that probes and clients see it.
DEATH_SECONDS = 3.0

log = structlog.get_logger()


class Server(uvicorn.Server):
    """A uvicorn server that leaves the signals to `serve`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: uvicorn would end the process by the signal, and a drained service exits with 0."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. asyncio has one number for how many connections wait and how many it accepts in one go."""
        await super().startup(sockets=sockets)
        for each in sockets or ():
            each.listen(BACKLOG)


def build_server(app: FastAPI, limits: Limits | None = None) -> Server:
    """A server with the limits that only the server can set."""
    limits = limits or Limits()
    bounds = {
        "max_connections": min(limits.max_connections, _room_for_connections()),
        "max_connections_per_address": limits.max_connections_per_address,
        "request_seconds": limits.request_seconds,
    }
    config = uvicorn.Config(
        app,
        http=type("Protocol", (BoundedProtocol,), bounds),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        log_level="warning",
        timeout_keep_alive=75,
        backlog=ACCEPTED_AT_ONCE,
        timeout_graceful_shutdown=SLOW_READER_SECONDS,
    )
    return Server(config)


def _room_for_connections() -> int:
    """How many connections the limit of open files leaves, beside the engine, the probes and the refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(1, hard - min(256, hard // 2) - PROBE_CONNECTIONS - ACCEPTED_AT_ONCE) if hard > 0 else 1 << 30


async def serve(
    app: FastAPI, service: Service, sockets: list[socket.socket], *, drain_seconds: float
) -> None:
    """Load the pair while /livez already answers, serve until SIGTERM or SIGINT, drain, and return.

    `sockets` are those of `densepath.api.listener`.

    Draining: /readyz answers 503 at once, requests in flight may finish within `drain_seconds`, and those
    that are left then are answered with 503 `draining`. A second signal ends the wait. Raises what the start
    of the engine raises, and EngineUnavailableError when the engine was lost too often: only a new process
    helps then (docs/decisions/0004).
    """
    lifecycle = service.lifecycle
    server = build_server(app, service.limits)
    async with _signals() as signals:
        running = asyncio.ensure_future(server.serve(sockets))
        engine = asyncio.ensure_future(lifecycle.run())
        asked = asyncio.ensure_future(signals.get())
        await asyncio.wait({running, engine, asked}, return_when=asyncio.FIRST_COMPLETED)
        starting = lifecycle.phase is not Phase.READY
        try:
            if engine.done():
                if lifecycle.loaded.is_set():
                    log.error("engine_dead", seconds_until_exit=DEATH_SECONDS)
                    await asyncio.wait(
                        {running, asked}, timeout=DEATH_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                engine.result()  # raises
            lifecycle.enter(Phase.DRAINING)
            engine.cancel()  # also a start, whose processes end now
            if asked.done():
                await _drain(lifecycle, signals, drain_seconds)
        finally:
            asked.cancel()
            if not engine.cancelling():  # a second time would interrupt the end of its processes
                engine.cancel()
            server.should_exit = True
            await asyncio.gather(running, engine, asked, return_exceptions=True)
            await lifecycle.served.scorer.close()
        if starting:
            os._exit(0)  # the thread that starts an engine can't be cancelled
    running.result()


async def _drain(lifecycle: Lifecycle, signals: asyncio.Queue[int], drain_seconds: float) -> None:
    log.info("draining", in_flight=lifecycle.in_flight, seconds=drain_seconds)
    finished, again = asyncio.ensure_future(lifecycle.idle.wait()), asyncio.ensure_future(signals.get())
    await asyncio.wait({finished, again}, timeout=drain_seconds, return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    lifecycle.out_of_time.set()
    await asyncio.wait({finished}, timeout=LAST_WORDS_SECONDS)
    finished.cancel()


@contextlib.asynccontextmanager
async def _signals() -> AsyncIterator[asyncio.Queue[int]]:
    """Put SIGTERM and SIGINT into a queue as they arrive."""
    loop = asyncio.get_running_loop()
    received: asyncio.Queue[int] = asyncio.Queue()
    caught = (signal.SIGTERM, signal.SIGINT)
    for number in caught:
        loop.add_signal_handler(number, received.put_nowait, number)
    try:
        yield received
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
