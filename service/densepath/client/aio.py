"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import stamina

from densepath.client.answers import Answer
from densepath.client.core import TIMEOUT, Core, Exchange, ScoreCall
from densepath.client.items import Item
from densepath.client.plan import OnError, Options
from densepath.client.results import Scores
from densepath.client.retry import Backoff, Deadline, connection_errors
from densepath.errors import UnavailableError

T = TypeVar("T")

IN_FLIGHT = 4
"""How many requests of one call are under way at once; together they fit the service's queue."""


class AsyncClient:
    """As `Client`, for asyncio; the requests of a big batch are under way together.

    Close it, or use it in an `async with`.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        pin: bool = False,
        timeout: httpx.Timeout = TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._core = Core(base_url, api_key, pin)
        self._http = httpx.AsyncClient(
            base_url=self._core.base_url, headers=self._core.headers, timeout=timeout, transport=transport
        )

    async def score(
        self,
        items: Iterable[Item],
        *,
        include: Sequence[str] = (),
        gamma: float = 1.0,
        on_error: OnError = "fail",
        model_version: str | None = None,
        deadline: float | None = None,
    ) -> Scores:
        """As `Client.score`. When one request fails, those under way are cancelled."""
        until = Deadline(deadline)
        call = ScoreCall(self._core, items, Options(tuple(include), gamma, on_error), model_version)
        if self._core.limits is None:
            await self._send(self._core.pair(), until)
        return call.join(await self._send_all(call.exchanges(IN_FLIGHT), until))

    async def pair(self) -> dict[str, Any]:
        """As `Client.pair`."""
        return await self._send(self._core.pair(), Deadline(None))

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """As `Client.tokenize`."""
        return await self._send(self._core.tokenize(text, add_special_tokens), Deadline(None))

    async def ready(self) -> bool:
        """As `Client.ready`."""
        try:
            with connection_errors(Deadline(None)):
                return (await self._http.get("/readyz")).status_code == 200
        except UnavailableError:
            return False

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _send_all(self, exchanges: Sequence[Exchange[Answer]], deadline: Deadline) -> list[Answer]:
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def one(exchange: Exchange[Answer]) -> Answer:
            async with slots:
                return await self._send(exchange, deadline)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(exchange)) for exchange in exchanges]
        except BaseExceptionGroup as errors:
            first = errors.exceptions[0]
            raise first from first.__cause__  # a caller catches the contract's errors, not groups of them
        return [task.result() for task in tasks]

    async def _send(self, exchange: Exchange[T], deadline: Deadline) -> T:
        headers, content = exchange.content()
        async for attempt in stamina.retry_context(
            Backoff(deadline), attempts=deadline.attempts, timeout=None
        ):
            with attempt:
                with connection_errors(deadline):
                    response = await self._http.request(
                        exchange.method,
                        exchange.path,
                        content=content,
                        headers=headers | deadline.headers(),
                        timeout=deadline.timeout(self._http.timeout),
                    )
                return exchange.read(response)
        raise AssertionError("the last attempt returns or raises")
