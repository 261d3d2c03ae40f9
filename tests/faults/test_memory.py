"""A long text, trailers without an end and connections that never finish, together: memory stays bounded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TypeVar

import httpx
import psutil

from live import start, stop, wait_ready

T = TypeVar("T")
TEXT_BYTES, CONNECTIONS, SECONDS = 30_000_000, 200, 4.0
MOST_MB = 200.0
SMALL = {"items": [{"prompt_token_ids": [7], "response_token_ids": [8, 9]}]}
HEAD = b"POST /v1/rewards HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BEGINNINGS = (
    HEAD,
    HEAD + b"Content-Length: 1000000\r\n\r\n{",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
)


async def until(end: float, work: Awaitable[T]) -> T | None:
    """What the work returns by then; None where it is not done, or its connection is closed."""
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout_at(end):
            return await work
    return None


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def send_a_text(port: int) -> bytes:
    """A text that no model can take; the status line of the answer."""
    body = json.dumps({"items": [{"prompt": "a", "response": "!?" * (TEXT_BYTES // 2)}]}).encode()
    async with connected(port) as (reader, writer):
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        return await reader.readline()


async def send_trailers(port: int) -> None:
    """Trailers until the service closes the connection."""
    async with connected(port) as (_, writer):
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")
        while True:
            writer.write(b"X-Trailer: nothing\r\n" * 10_000)
            await writer.drain()


async def never_finish(port: int, beginning: bytes) -> None:
    """A request that stops in the middle, and a byte of it now and then."""
    async with connected(port) as (_, writer):
        writer.write(beginning)
        while True:
            await asyncio.sleep(0.5)
            writer.write(b"x")


async def attack(port: int, service: psutil.Process) -> tuple[list[bytes | None], float, float]:
    """All of it at once: the answers to the texts, the most memory in MB, the slowest small request."""
    loop = asyncio.get_running_loop()
    end, peak, slowest = loop.time() + SECONDS, 0.0, 0.0
    # What was sent already lingers; only its answer is waited for longer.
    texts = [asyncio.ensure_future(until(end + 60, send_a_text(port))) for _ in range(2)]
    others = [
        asyncio.ensure_future(until(end, work))
        for work in (
            *(send_trailers(port) for _ in range(4)),
            *(never_finish(port, BEGINNINGS[k % len(BEGINNINGS)]) for k in range(CONNECTIONS)),
        )
    ]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        while loop.time() < end:
            began = time.perf_counter()
            answer = await client.post("/v1/rewards", json=SMALL)
            slowest = max(slowest, time.perf_counter() - began)
            assert answer.status_code == 200, answer.text
            peak = max(peak, service.memory_info().rss / 1e6)
            await asyncio.sleep(0.02)
    answers = await asyncio.gather(*texts)
    await asyncio.gather(*others)
    return answers, peak, slowest


def test_rows_08_39_memory_is_bounded_and_a_small_request_is_answered(
    pair_dirs: tuple[Path, Path], tmp_path: Path
) -> None:
    sft, reference = pair_dirs
    log = tmp_path / "log"
    process, url = start("--sft", sft, "--reference", reference, "--engine", "fake", log=log)
    try:
        wait_ready(process, url, log)
        service = psutil.Process(process.pid)
        assert httpx.post(f"{url}/v1/rewards", json=SMALL).status_code == 200
        before = service.memory_info().rss / 1e6
        answers, peak, slowest = asyncio.run(attack(int(url.rpartition(":")[2]), service))
        print(f"memory {before:.0f} MB, at most {peak:.0f}; the slowest small request {slowest:.2f} s")
        assert [line and line.split()[1] for line in answers] == [b"422", b"422"]
        assert peak - before < MOST_MB
        assert stop(process) == 0, log.read_text()[-4000:]
    finally:
        process.kill()
        process.wait()
