"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from densepath.client.core import READY_SECONDS, TIMEOUT, Core, Progress, ScoreCall
from densepath.client.exchange import Exchange, Incoming, Reply
from densepath.client.items import Item
from densepath.client.patience import Patience
from densepath.client.plan import Chunk, OnError, Options
from densepath.client.replicas import Replica
from densepath.client.results import Score, Scores
from densepath.client.retry import Sending
from densepath.errors import ModelVersionMismatchError

T = TypeVar("T")

IN_FLIGHT = 4
"""The largest number of requests of one call that run at the same time at one replica. They fit its queue."""

BATCHES = 2
"""How many batches of `iter_score` run at the same time: while one is returned, the next is scored."""

Slots = defaultdict[Replica, asyncio.Semaphore]


class AsyncClient:
    """As `Client`, for asyncio. The requests of a large batch run at the same time.

    Close it, or use it in an `async with`.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        *,
        api_key: str | None = None,
        pin: bool = False,
        timeout: httpx.Timeout = TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._core = Core(base_url, api_key, pin)
        self._http = httpx.AsyncClient(headers=self._core.headers, timeout=timeout, transport=transport)

    async def score(
        self,
        items: Iterable[Item],
        *,
        include: Sequence[str] = (),
        gamma: float = 1.0,
        on_error: OnError = "fail",
        model_version: str | None = None,
        deadline: float | None = None,
        progress: Progress | None = None,
    ) -> Scores:
        """As `Client.score`. When one request fails, the requests that are still running are cancelled."""
        patience = Patience(deadline)
        options = Options(tuple(include), gamma, on_error)
        call = ScoreCall(self._core, items, options, model_version, progress)
        if self._core.limits is None:
            await self._send(self._core.pair(), patience)
        return await self._finish(call, patience, _slots())

    async def iter_score(
        self,
        items: Iterable[Item],
        *,
        include: Sequence[str] = (),
        gamma: float = 1.0,
        on_error: OnError = "fail",
        model_version: str | None = None,
        deadline: float | None = None,
    ) -> AsyncGenerator[Score]:
        """As `Client.iter_score`, but reads up to 2048 items ahead, and scores them while it yields scores.

        Running requests are cancelled when the generator is closed: at once with `contextlib.aclosing`, or
        soon after a `break` without it.
        """
        options = Options(tuple(include), gamma, on_error)
        await self._send(self._core.pair(), Patience(deadline))
        slots, under_way = _slots(), deque[asyncio.Task[Scores]]()

        async def finish(batch: Callable[[], ScoreCall]) -> Scores:
            return await self._finish(batch(), Patience(deadline), slots)

        async def first() -> Scores:
            # Unlike `await task`, this does not cancel the task when it is cancelled itself: `finally` does.
            await asyncio.wait([under_way[0]])
            return under_way.popleft().result()

        try:
            for batch in self._core.batches(items, options, model_version):
                under_way.append(asyncio.create_task(finish(batch)))
                if len(under_way) == BATCHES:
                    for score in await first():
                        yield score
            while under_way:
                for score in await first():
                    yield score
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def pair(self) -> dict[str, Any]:
        """As `Client.pair`."""
        return await self._send(self._core.pair(), Patience(None))

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """As `Client.tokenize`."""
        return await self._send(self._core.tokenize(text, add_special_tokens), Patience(None))

    async def ready(self) -> bool:
        """As `Client.ready`."""
        return any([await self._is_ready(replica) for replica in self._core.replicas])

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _is_ready(self, replica: Replica) -> bool:
        try:
            url = f"{replica.url}/readyz"
            async with asyncio.timeout(READY_SECONDS), self._http.stream("GET", url) as response:
                return response.status_code == 200
        except (httpx.RequestError, TimeoutError):
            return False

    async def _finish(self, call: ScoreCall, patience: Patience, slots: Slots) -> Scores:
        async def one(chunk: Chunk) -> None:
            async with slots[chunk.replicas[0]]:
                call.add(chunk, await self._send(call.exchange(chunk), patience))

        chunks = call.chunks(IN_FLIGHT)
        while chunks:
            try:
                async with asyncio.TaskGroup() as group:
                    for chunk in chunks:
                        group.create_task(one(chunk))
                chunks = call.again()
            except BaseExceptionGroup as errors:
                first = errors.exceptions[0]
                if not isinstance(first, ModelVersionMismatchError):
                    # A caller catches the contract's errors, not groups of them.
                    raise first from first.__cause__
                chunks = call.start_over(first)
        return call.join()

    async def _send(self, exchange: Exchange[T], patience: Patience) -> T:
        sending = Sending(exchange, patience)
        while True:
            while wait := sending.wait():  # noqa: ASYNC110  # clients of other loops and threads open the gate
                await asyncio.sleep(wait)
            with sending.attempt(self._http.timeout) as request:
                async with asyncio.timeout(patience.left()):
                    reply = await self._receive(request, exchange, patience)
                return exchange.read(reply)

    async def _receive(self, request: dict[str, Any], exchange: Exchange[Any], patience: Patience) -> Reply:
        async with self._http.stream(**request) as response:
            incoming = Incoming(response, exchange, patience)
            async for part in response.aiter_bytes():
                incoming.add(part)
            return incoming.whole()


def _slots() -> Slots:
    return defaultdict(lambda: asyncio.Semaphore(IN_FLIGHT))
