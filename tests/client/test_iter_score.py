"""`iter_score`: items that do not fit in memory, scored in order and of one pair version."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import httpx
import numpy as np
import pytest

from densepath.client import AsyncClient, core
from densepath.client.aio import BATCHES, IN_FLIGHT
from densepath.errors import InvalidItemError, InvalidRequestError, ModelVersionMismatchError

BATCH_ITEMS = 6


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, service: Any) -> None:
    monkeypatch.setattr(core, "BATCH_ITEMS", BATCH_ITEMS)
    service.limits["max_items"] = 2


class Items:
    """Items as they are read, the n-th with the response [n]."""

    def __init__(self, total: int, bad: int | None = None) -> None:
        self.read = 0
        self._total, self._bad = total, bad

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for n in range(self._total):
            self.read += 1
            yield {"prompt_token_ids": [] if n == self._bad else [1], "response_token_ids": [n], "id": str(n)}


def note(scores: Iterator[Any], seen: list[int]) -> None:
    for score in scores:
        seen.append(score.index)


def test_scores_come_in_order_with_the_places_of_all_items(client: Any, service: Any) -> None:
    scores = list(client.iter_score(iter(Items(20)), include=["logprobs"]))
    assert [score.index for score in scores] == list(range(20))
    assert [score.id for score in scores] == [str(n) for n in range(20)]
    assert [float(score.reward_T[0]) for score in scores] == [float(np.float32(n / 7)) for n in range(20)]
    assert scores[0].logp_sft_T is not None
    assert {len(batch) for batch in service.batches} == {2}
    assert sum(map(len, service.batches)) == 20


def test_items_are_read_as_they_are_needed(client: Any) -> None:
    items = Items(1000)
    for score in client.iter_score(items):
        assert items.read <= (score.index // BATCH_ITEMS + BATCHES) * BATCH_ITEMS
        if score.index == 100:
            break
    assert items.read < 130


def test_no_items_have_no_scores(client: Any) -> None:
    assert list(client.iter_score([])) == []


def test_an_item_that_fails_is_named_by_its_place_among_all(client: Any) -> None:
    seen: list[int] = []
    with pytest.raises(InvalidItemError, match=r"items\[15\]: the prompt is empty") as caught:
        note(client.iter_score(Items(20, bad=15)), seen)
    assert caught.value.param == "items[15]"
    assert seen == list(range(12))  # the scores of the batches before it
    scores = list(client.iter_score(Items(20, bad=15), on_error="item"))
    assert [score.index for score in scores if score.error is not None] == [15]
    assert scores[15].error.param == "items[15]"
    assert len(scores) == 20


def test_what_is_no_item_is_named_by_its_place_among_all(client: Any) -> None:
    items = [*Items(8), {"what": 1}]
    with pytest.raises(InvalidItemError, match=r"items\[8\] must have"):
        list(client.iter_score(items))


def test_options_outside_the_contract_are_refused(client: Any, service: Any) -> None:
    with pytest.raises(InvalidRequestError):
        next(iter(client.iter_score(Items(3), gamma=2)))
    assert service.requests == []


def test_a_swap_in_the_middle_is_an_error(client: Any, service: Any) -> None:
    def swap(arrays: Any, rest: Any) -> None:
        if len(service.batches) == 7:
            service.version = "v2"

    service.alter = swap
    seen: list[int] = []
    with pytest.raises(ModelVersionMismatchError):
        note(client.iter_score(Items(40)), seen)
    assert seen == list(range(len(seen)))
    assert len(seen) <= 14


def test_the_version_is_the_one_that_is_pinned_or_asked_for(connect: Any, service: Any) -> None:
    client = connect(service, pin=True)
    assert len(list(client.iter_score(Items(3)))) == 3
    service.version = "v2"
    with pytest.raises(ModelVersionMismatchError):
        list(client.iter_score(Items(3)))
    assert len(list(client.iter_score(Items(3), model_version="v2"))) == 3
    with pytest.raises(ModelVersionMismatchError):
        client.score(Items(3))
    with pytest.raises(ModelVersionMismatchError):
        list(connect(service).iter_score(Items(3), model_version="v1"))


class Held:
    """A service whose requests beyond the first `free` wait for ever; it counts what is cancelled."""

    def __init__(self, service: Any, free: int) -> None:
        self._service, self._free = service, free
        self.under_way = self.most = self.cancelled = 0
        self.full = asyncio.Event()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/rewards":
            if self._free == 0:
                await self._hold()
            self._free -= 1
        return self._service(request)  # type: ignore[no-any-return]

    async def _hold(self) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        if self.under_way == IN_FLIGHT:
            self.full.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.under_way -= 1
            self.cancelled += 1


async def test_several_requests_are_under_way_while_scores_are_handed_out(service: Any) -> None:
    service.limits["max_items"] = 1
    held = Held(service, free=BATCH_ITEMS)
    async with (
        AsyncClient("http://service", transport=httpx.MockTransport(held)) as client,
        aclosing(client.iter_score(Items(1000))) as scores,
        asyncio.timeout(10),
    ):
        assert (await anext(scores)).index == 0
        await held.full.wait()
        assert [(await anext(scores)).index for _ in range(BATCH_ITEMS - 1)] == list(range(1, BATCH_ITEMS))
    assert held.most == IN_FLIGHT
    assert held.cancelled == IN_FLIGHT


@pytest.mark.parametrize("close", ["aclosing", "break", "cancel"])
async def test_a_consumer_that_stops_early_leaves_nothing_behind(service: Any, close: str) -> None:
    before = asyncio.all_tasks()
    held = Held(service, free=3)
    async with AsyncClient("http://service", transport=httpx.MockTransport(held)) as client:
        if close == "aclosing":
            async with aclosing(client.iter_score(Items(1000))) as scores:
                await anext(scores)
        elif close == "break":
            async for _ in client.iter_score(Items(1000)):
                break
        else:
            consumer = asyncio.create_task(all_of(client, Items(1000)))
            async with asyncio.timeout(10):
                await held.full.wait()
            consumer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await consumer
        async with asyncio.timeout(10):
            while asyncio.all_tasks() != before:  # noqa: ASYNC110  # the loop closes a generator that was left
                await asyncio.sleep(0)
        assert held.under_way == 0


async def all_of(client: AsyncClient, items: Items) -> list[int]:
    return [score.index async for score in client.iter_score(items)]


async def test_a_failure_of_the_items_themselves_cancels_what_is_under_way(service: Any) -> None:
    before = asyncio.all_tasks()

    def broken() -> Iterator[dict[str, Any]]:
        yield from Items(BATCH_ITEMS + 1)
        raise OSError("the disk is gone")

    held = Held(service, free=0)
    async with AsyncClient("http://service", transport=httpx.MockTransport(held)) as client:
        with pytest.raises(OSError, match="disk"):
            await all_of(client, broken())  # type: ignore[arg-type]
    assert asyncio.all_tasks() == before
