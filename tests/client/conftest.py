from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import numpy as np
import pytest

from densepath.client import AsyncClient, Client, Score, Scores, replicas
from densepath.errors import DensepathError, InvalidItemError, ModelVersionMismatchError
from densepath.wire import MEDIA_TYPE, pack_answer, unpack_request

EOS = 2


def reward_of(token_id: int) -> np.float32:
    return np.float32(token_id / 7)


class FakeService:
    """The contract in small: a text's tokens are its characters; a token's reward is a seventh of its id."""

    def __init__(self) -> None:
        self.version = "v1"
        self.limits = {"max_items": 256, "max_body_bytes": 1 << 20, "max_queued_tokens": 1 << 16}
        self.requests: list[httpx.Request] = []
        self.batches: list[list[dict[str, Any]]] = []
        self.instead: list[Callable[[httpx.Request], httpx.Response]] = []
        """What the next requests to /v1/rewards get instead of scores, in turn."""
        self.alter: Callable[[dict[str, np.ndarray[Any, Any]], dict[str, Any]], None] = lambda arrays, rest: (
            None
        )
        """What is done to a finished answer before it is packed."""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.url.path == "/v1/pair":
            return httpx.Response(
                200, json={"object": "pair", "version": self.version, "limits": self.limits}
            )
        if request.url.path == "/readyz":
            return httpx.Response(200)
        if request.url.path == "/tokenize":
            return httpx.Response(
                200, json={"tokens": [ord(c) for c in json.loads(request.content)["prompt"]]}
            )
        if self.instead:
            return self.instead.pop(0)(request)
        try:
            return self.rewards(request)
        except DensepathError as error:
            return refusal(error)

    def scored(self) -> list[httpx.Request]:
        return [request for request in self.requests if request.url.path == "/v1/rewards"]

    def rewards(self, request: httpx.Request) -> httpx.Response:
        items, fields = read(request)
        self.batches.append(items)
        if fields.get("model_version") not in (None, self.version):
            raise ModelVersionMismatchError("model_version is not the served one")
        entries: list[dict[str, Any]] = []
        rows: list[list[int]] = []
        for index, item in enumerate(items):
            try:
                scored, entry = score(index, item, fields)
            except InvalidItemError as error:
                if fields["on_error"] == "fail":
                    raise
                scored, entry = [], {"status": "error", "error": error.detail()}
            rows.append(scored)
            entries.append({"index": index, "id": item.get("id"), **entry})
        flat = np.array([reward_of(token) for row in rows for token in row], np.float32)
        arrays = {"rewards": flat, "offsets": np.cumsum([0, *map(len, rows)], dtype=np.int64)}
        if "logprobs" in fields["include"]:
            arrays |= {"sft_logprobs": flat - 5, "reference_logprobs": np.full_like(flat, -5)}
        if "returns" in fields["include"]:
            arrays["returns"] = flat * np.float32(fields["gamma"])
        usage = {"prompt_tokens": len(items), "response_tokens": len(flat), "cached_tokens": 0}
        rest: dict[str, Any] = {"object": "rewards", "model_version": self.version, "items": entries}
        rest["usage"] = usage
        self.alter(arrays, rest)
        return httpx.Response(200, content=pack_answer(arrays, rest), headers={"Content-Type": MEDIA_TYPE})


def read(request: httpx.Request) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    assert request.headers["accept"] == MEDIA_TYPE
    if request.headers["content-type"] == "application/json":
        fields = json.loads(request.content)
        return fields["items"], fields
    packed = unpack_request(request.content)
    fields = dict(packed.request)
    ids = fields.pop("ids", [None] * (len(packed.offsets) - 1))
    items = []
    for i, id_ in enumerate(ids):
        at = slice(packed.offsets[i], packed.offsets[i + 1])
        token_ids = packed.token_ids[at].tolist()
        if packed.response_mask is None:
            start = packed.response_start[i]
            item = {"prompt_token_ids": token_ids[:start], "response_token_ids": token_ids[start:]}
        else:
            item = {"token_ids": token_ids, "response_mask": packed.response_mask[at].tolist()}
        items.append(item | {"id": id_})
    return items, fields


def score(index: int, item: dict[str, Any], fields: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
    entry: dict[str, Any] = {"status": "ok"}
    if "prompt_token_ids" in item:
        prompt, scored = item["prompt_token_ids"], item["response_token_ids"]
    elif "token_ids" in item:
        positions = [i for i, on in enumerate(item["response_mask"]) if on]
        entry["positions"] = positions
        prompt, scored = item["token_ids"][:1], [item["token_ids"][i] for i in positions]
    else:
        prompt = item.get("prompt") or item.get("messages")
        scored = [ord(c) for c in item["response"]] + [EOS] * item.get("append_eos", False)
        entry["response_token_ids"] = scored
    if not prompt:
        raise InvalidItemError(f"items[{index}]: the prompt is empty", param=f"items[{index}]")
    if not scored:
        raise InvalidItemError(f"items[{index}]: the response is empty", param=f"items[{index}]")
    if "tokens" in fields["include"]:
        entry |= {"response_token_ids": scored, "tokens": [chr(token) for token in scored]}
        if "response" in item:
            entry["offsets"] = [[i, i + 1] for i in range(len(scored))]
    entry |= {"sum": float(sum(reward_of(t) for t in scored)), "ended": scored[-1] == EOS}
    return scored, entry


def refusal(error: DensepathError) -> httpx.Response:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return httpx.Response(error.status, json={"error": error.detail()}, headers=headers)


class Blocking:
    """An AsyncClient behind the calls of a Client, so that one test holds both to the same."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._client = AsyncClient(*args, **kwargs)
        self._runner = asyncio.Runner()  # one event loop, as its connections ask for

    def close(self) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()

    def score(self, *args: Any, **kwargs: Any) -> Scores:
        return self._runner.run(self._client.score(*args, **kwargs))

    def iter_score(self, *args: Any, **kwargs: Any) -> Iterator[Score]:
        scores = self._client.iter_score(*args, **kwargs)
        try:
            while True:
                yield self._runner.run(anext(scores))
        except StopAsyncIteration:
            pass
        finally:
            self._runner.run(scores.aclose())

    def pair(self) -> dict[str, Any]:
        return self._runner.run(self._client.pair())

    def ready(self) -> bool:
        return self._runner.run(self._client.ready())

    def tokenize(self, text: str) -> list[int]:
        return self._runner.run(self._client.tokenize(text))


@pytest.fixture(autouse=True)
def no_memory_of_other_tests() -> None:
    """All clients of a process share what they know of a URL."""
    replicas._replica.cache_clear()


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes a client of a handler."""
    kind = Client if request.param == "sync" else Blocking
    with ExitStack() as stack:

        def make(handler: Any, base_url: Any = "http://service:8000", **options: Any) -> Any:
            client = kind(base_url, transport=httpx.MockTransport(handler), **options)
            stack.callback(client.close)
            return client

        yield make


@pytest.fixture
def client(connect: Callable[..., Any], service: FakeService) -> Any:
    return connect(service)


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.naps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.naps.append(seconds)

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr("densepath.client.patience.monotonic", lambda: clock.now)
    monkeypatch.setattr("densepath.client.gate.monotonic", lambda: clock.now)
    monkeypatch.setattr("densepath.client.retry.monotonic", lambda: clock.now)
    monkeypatch.setattr("time.sleep", clock.sleep)
    monkeypatch.setattr("asyncio.sleep", clock.sleep_async)
    return clock
