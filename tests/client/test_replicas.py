"""Several replicas: where a prompt goes, and what happens when one fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

import httpx
import numpy as np
import pytest

from client.conftest import FakeService, refusal
from densepath.client import AsyncClient, Client
from densepath.client.aio import IN_FLIGHT
from densepath.client.retry import ATTEMPTS
from densepath.errors import (
    BY_CODE,
    DrainingError,
    EngineUnavailableError,
    InternalError,
    InvalidRequestError,
    ModelVersionMismatchError,
    OverloadedError,
    UnavailableError,
)

URLS = ["http://a:8000", "http://b:8000/", "http://c:8000"]


class Cluster:
    """Replicas by host; those in `broken` do something else than answer."""

    def __init__(self) -> None:
        self.services = {"a": FakeService(), "b": FakeService(), "c": FakeService()}
        self.broken: dict[str, Callable[[httpx.Request], httpx.Response]] = {}
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        if request.url.path == "/v1/rewards":
            self.asked.append(host)
        return self.broken.get(host, self.services[host])(request)

    def homes(self, client: Any, items: list[dict[str, Any]]) -> list[str]:
        """The replica that answers each item, sent on its own."""
        homes = []
        for item in items:
            client.score([item])
            homes.append(self.asked[-1])
        return homes


def lost(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


def tokens(prompt: int, response: int = 7) -> dict[str, Any]:
    return {"prompt_token_ids": [1, prompt], "response_token_ids": [response]}


PROMPTS = [tokens(n) for n in range(60)]


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def client(connect: Callable[..., Any], cluster: Cluster, clock: Any) -> Any:
    return connect(cluster, base_url=URLS)


def test_the_rollouts_of_a_prompt_meet_at_one_replica(client: Any, cluster: Cluster) -> None:
    scores = client.score([tokens(n, response) for response in range(1, 9) for n in range(60)])
    assert [float(score.reward_T[0]) for score in scores] == [
        float(np.float32(response / 7)) for response in range(1, 9) for n in range(60)
    ]
    prompts = {
        host: {tuple(item["prompt_token_ids"]) for batch in service.batches for item in batch}
        for host, service in cluster.services.items()
    }
    assert sum(map(len, prompts.values())) == 60  # no prompt is at two of them
    assert min(map(len, prompts.values())) > 8


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (tokens, lambda n: {"token_ids": [1, n, 5, 6], "response_mask": [0, 0, 1, 1]}),
        (
            lambda n: {"prompt": f"p{n}", "response": "a"},
            lambda n: {"prompt": f"p{n}", "response": "bc", "append_eos": True},
        ),
        (
            lambda n: {"messages": [{"role": "user", "content": str(n)}], "response": "a"},
            lambda n: {"messages": [{"role": "user", "content": str(n)}], "response": "b", "id": "x"},
        ),
    ],
)
def test_a_prompt_is_the_same_in_whatever_item(client: Any, cluster: Cluster, one: Any, other: Any) -> None:
    first = cluster.homes(client, [one(n) for n in range(30)])
    assert cluster.homes(client, [other(n) for n in range(30)]) == first
    assert set(first) == {"a", "b", "c"}


def test_only_the_prompts_of_a_replica_that_is_gone_move(
    client: Any, connect: Any, cluster: Cluster, clock: Any
) -> None:
    before = cluster.homes(client, PROMPTS)
    cluster.broken["b"] = lost
    after = cluster.homes(connect(cluster, base_url=URLS[::-1]), PROMPTS)  # the order of the URLs is nothing
    moved = [new for old, new in zip(before, after, strict=True) if old == "b"]
    assert [new for old, new in zip(before, after, strict=True) if old != "b"] == [
        old for old in before if old != "b"
    ]
    assert set(moved) == {"a", "c"}
    assert sum(clock.naps) == 0  # at once


@pytest.mark.parametrize(
    "failure",
    [
        lost,
        lambda request: refusal(OverloadedError("full")),
        lambda request: refusal(DrainingError("ask another", retry_after=1)),
        lambda request: refusal(EngineUnavailableError("starting", retry_after=30)),
        lambda request: httpx.Response(502, content=b"<html>"),
    ],
)
def test_requests_go_to_the_next_at_once(client: Any, cluster: Cluster, clock: Any, failure: Any) -> None:
    client.pair()
    cluster.broken = {"a": failure, "b": failure}
    scores = client.score(PROMPTS)
    assert [score.index for score in scores] == list(range(60))
    assert sum(clock.naps) == 0
    assert cluster.asked.count("c") == len(cluster.services["c"].batches)
    items = [tuple(i["prompt_token_ids"]) for batch in cluster.services["c"].batches for i in batch]
    assert sorted(items) == [(1, n) for n in range(60)]


@pytest.mark.parametrize("code", ["quota_exceeded", "request_timeout"])
def test_what_is_the_callers_own_stays_where_it_is(
    client: Any, cluster: Cluster, clock: Any, code: str
) -> None:
    (home,) = cluster.homes(client, [PROMPTS[0]])
    cluster.services[home].instead = [lambda request: refusal(BY_CODE[code]("wait", retry_after=3))]
    cluster.homes(client, [PROMPTS[0]])
    assert cluster.asked == [home] * 3
    assert len(clock.naps) == 1
    assert clock.naps[0] >= 3


def test_what_stays_wrong_is_asked_of_one(client: Any, cluster: Cluster) -> None:
    client.pair()
    cluster.broken = dict.fromkeys("abc", lambda request: refusal(InternalError("bug")))
    with pytest.raises(InternalError, match="bug"):
        client.score([PROMPTS[0]])
    assert len(cluster.asked) == 1


def test_a_replica_that_failed_is_passed_over_for_a_while(client: Any, cluster: Cluster, clock: Any) -> None:
    (home,) = cluster.homes(client, [PROMPTS[0]])
    cluster.broken[home] = lost
    for rest in (1, 2, 4, 8, 16, 30, 30):
        cluster.asked.clear()
        cluster.homes(client, [PROMPTS[0]] * 2)
        assert [host == home for host in cluster.asked] == [True, False, False]
        clock.now += rest - 0.01
        cluster.homes(client, [PROMPTS[0]])
        assert cluster.asked[-1] != home
        clock.now += 0.02
    del cluster.broken[home]
    assert cluster.homes(client, PROMPTS[:1]) == [home]
    cluster.broken[home] = lost
    cluster.homes(client, [PROMPTS[0]])
    clock.now += 1.01  # an answer has cleared what came before
    del cluster.broken[home]
    assert cluster.homes(client, PROMPTS[:1]) == [home]


def test_prompts_go_where_they_would_go_without_the_replica_that_rests(
    client: Any, connect: Any, cluster: Cluster
) -> None:
    before = cluster.homes(client, PROMPTS)
    without = cluster.homes(connect(cluster, base_url=[URLS[0], URLS[2]]), PROMPTS)
    cluster.broken["b"] = lost
    cluster.homes(client, [PROMPTS[before.index("b")]])
    for service in cluster.services.values():
        service.batches.clear()
    client.score(PROMPTS)  # in one call: a request's prompts move each on its own
    for host in "ac":
        batches = cluster.services[host].batches
        prompts = sorted(item["prompt_token_ids"][1] for batch in batches for item in batch)
        assert prompts == [n for n, home in enumerate(without) if home == host]


async def test_each_replica_has_its_own_requests_under_way_and_their_failures_are_one(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("densepath.client.gate.monotonic", lambda: now)
    for service in cluster.services.values():
        service.limits["max_items"] = 1
    under_way: Counter[str] = Counter()
    full, open_ = asyncio.Event(), asyncio.Event()

    async def handle(request: httpx.Request) -> httpx.Response:
        host = request.url.host
        if request.url.path == "/v1/rewards" and not open_.is_set():
            under_way[host] += 1
            if min(under_way[host] for host in "abc") == IN_FLIGHT:
                full.set()
            await open_.wait()
            if host == "b":
                raise httpx.ReadError("reset")
        return cluster(request)

    async with AsyncClient(URLS, transport=httpx.MockTransport(handle)) as client, asyncio.timeout(20):
        call = asyncio.create_task(client.score(PROMPTS))
        await full.wait()
        for _ in range(100):
            await asyncio.sleep(0)  # whatever else would start, starts
        assert under_way == dict.fromkeys("abc", IN_FLIGHT)
        open_.set()
        assert len(await call) == 60
        assert "b" not in cluster.asked
        now += 1.01  # four failures together are one
        await client.score(PROMPTS)
        assert "b" in cluster.asked


def test_a_replica_is_left_alone_for_its_retry_after(client: Any, cluster: Cluster, clock: Any) -> None:
    (home,) = cluster.homes(client, [PROMPTS[0]])
    cluster.services[home].instead = [lambda request: refusal(OverloadedError("full", retry_after=20))]
    assert cluster.homes(client, [PROMPTS[0]]) != [home]
    clock.now += 19.9
    assert cluster.homes(client, [PROMPTS[0]]) != [home]
    clock.now += 0.4  # the random time comes on top
    assert cluster.homes(client, [PROMPTS[0]]) == [home]


def test_where_all_fail_they_are_tried_again_after_waits(client: Any, cluster: Cluster, clock: Any) -> None:
    client.pair()
    cluster.broken = dict.fromkeys("abc", lost)
    with pytest.raises(UnavailableError, match=r"ConnectError, [abc]:8000"):
        client.score([PROMPTS[0]])
    assert set(cluster.asked[:3]) == {"a", "b", "c"}
    assert len(cluster.asked) == 3 * ATTEMPTS
    assert len(clock.naps) <= 3 * (ATTEMPTS - 1)  # the first failures of each are not waited for


def test_the_one_that_comes_back_answers_what_waits(client: Any, cluster: Cluster, clock: Any) -> None:
    client.pair()
    cluster.broken = {host: lambda request: refusal(OverloadedError("full", retry_after=9)) for host in "abc"}

    def back(request: httpx.Request) -> httpx.Response:
        return (
            refusal(OverloadedError("full", retry_after=5))
            if clock.now < 1005
            else cluster.services["b"](request)
        )

    cluster.broken["b"] = back
    assert client.score([PROMPTS[0]], deadline=60)[0].reward_T is not None
    assert cluster.asked[-1] == "b"
    assert 5 <= sum(clock.naps) < 6  # the least of what they asked for


def test_a_call_has_one_version_where_the_replicas_have_two(client: Any, cluster: Cluster) -> None:
    cluster.services["c"].version = "v2"
    progress: list[tuple[int, int]] = []
    scores = client.score(PROMPTS, progress=lambda done, total: progress.append((done, total)))
    assert scores.model_version in ("v1", "v2")
    assert [score.index for score in scores] == list(range(60))
    assert progress == sorted(progress)
    assert progress[-1] == (60, 60)
    assert scores.usage["response_tokens"] == 60


def test_a_call_starts_over_where_the_version_of_its_last_answer_is_gone(
    client: Any, cluster: Cluster
) -> None:
    cluster.services["c"].version = "v2"

    def update_all(done: int, total: int) -> None:
        if done == total:  # all are answered, by two versions
            for service in cluster.services.values():
                service.version = "v3"

    scores = client.score(PROMPTS, progress=update_all)
    assert [score.index for score in scores] == list(range(60))
    assert scores.model_version == "v3"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_version_is_asked_of_the_replicas_that_have_it(
    client: Any, cluster: Cluster, clock: Any, version: str
) -> None:
    cluster.services["c"].version = "v2"
    assert client.score(PROMPTS, model_version=version).model_version == version
    assert clock.naps == []  # at once
    with pytest.raises(ModelVersionMismatchError):
        client.score(PROMPTS, model_version="v3")
    cluster.broken["c"] = lost
    with pytest.raises(UnavailableError):
        client.score(PROMPTS, model_version="v2")


def test_replicas_of_two_versions_behind_one_url(connect: Any, cluster: Cluster, clock: Any) -> None:
    cluster.services["b"].version = "v2"
    turn = count()

    def balanced(request: httpx.Request) -> httpx.Response:
        return cluster.services["ab"[next(turn) % 2]](request)

    client = connect(balanced)
    for service in cluster.services.values():
        service.limits["max_items"] = 9
    for _ in range(5):
        assert len(client.score(PROMPTS)) == 60
    with pytest.raises(ModelVersionMismatchError):
        client.score(PROMPTS, model_version="v1")  # the caller's own version is not waited for


def test_the_limits_are_the_smallest_that_were_answered(client: Any, cluster: Cluster) -> None:
    for host, limit in zip("abc", (7, 5, 6), strict=True):
        cluster.services[host].limits["max_items"] = limit
    for host in "abc":
        cluster.broken = {other: lost for other in "abc" if other != host}
        assert client.pair()["limits"]["max_items"] == cluster.services[host].limits["max_items"]
    cluster.broken = {}
    client.score(PROMPTS)
    sizes = [len(batch) for service in cluster.services.values() for batch in service.batches]
    assert max(sizes) == 5


def test_ready_means_that_one_of_them_is(client: Any, cluster: Cluster) -> None:
    cluster.broken = dict.fromkeys("ab", lost)
    assert client.ready()
    cluster.broken["c"] = lambda request: httpx.Response(503)
    assert not client.ready()


def test_one_replica_named_twice_is_one(connect: Any, cluster: Cluster, clock: Any) -> None:
    client = connect(cluster, base_url=["http://a:8000"] * 2)
    client.pair()
    cluster.broken["a"] = lost
    with pytest.raises(UnavailableError):
        client.score([PROMPTS[0]])
    assert len(cluster.asked) == ATTEMPTS


@pytest.mark.parametrize("urls", [[], ["http://a", "b"], ["http://a", None]])
def test_urls_that_cannot_be_used_are_refused(urls: Any) -> None:
    with pytest.raises(InvalidRequestError, match="base_url"):
        Client(urls)


def test_an_error_names_the_replica_without_its_password(connect: Any, clock: Any) -> None:
    client = connect(lost, base_url="http://user:canary@a:8000")
    with pytest.raises(UnavailableError, match="a:8000") as caught:
        client.pair()
    assert "canary" not in str(caught.value)
