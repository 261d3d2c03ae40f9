"""Overload, hang-ups, deadlines and a broken engine: one answer each, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from api.bodies import CANARY, GOOD, TEXT, body
from api.running import Running, expected_rewards, make_service, running
from densepath.api.app import create_app
from densepath.config import Limits
from densepath.engine.fake import FakeScorer
from densepath.engine.scorer import Scored
from densepath.pair.pair import Pair
from densepath.sequences import Sequence

TOKENS = 6  # of GOOD
BUDGET = 60
NAN_ID, RAISE_ID = 77, 78
NAN = {**GOOD, "response_token_ids": [5, NAN_ID, 6]}
RAISING = {**GOOD, "response_token_ids": [5, RAISE_ID, 6]}


@pytest.fixture
def held(pair: Pair) -> Iterator[Running]:
    """A service whose engine waits for `open_gate`."""
    scorer = FakeScorer(64, gate=asyncio.Event())
    with running(make_service(pair, scorer=scorer, limits=Limits(max_queued_tokens=BUDGET))) as served:
        before = served.now(asyncio.all_tasks)
        yield served
        open_gate(served)
        assert served.score(GOOD).status_code == 200
        served.idle()
        served.until(lambda: asyncio.all_tasks() - before == {asyncio.current_task()})


@pytest.fixture(scope="module")
def broken(pair: Pair) -> Iterator[Running]:
    """A service whose engine fails on two ids."""
    scorer = FakeScorer(64, non_finite_after_id=NAN_ID, raise_on_id=RAISE_ID)
    with running(make_service(pair, scorer=scorer)) as served:
        yield served


def open_gate(served: Running) -> None:
    gate = served.scorer.gate
    assert gate is not None
    served.now(gate.set)


def strict(answer: httpx.Response) -> Any:
    """JSON without NaN and Infinity, which Python's parser takes by default."""
    return json.loads(answer.text, parse_constant=pytest.fail)


def code(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


def test_row_01_overload_refuses_early_and_what_was_accepted_finishes(held: Running) -> None:
    accepted = BUDGET // TOKENS
    with ThreadPoolExecutor(accepted) as pool:
        first = [pool.submit(held.score, GOOD) for _ in range(accepted)]
        held.until(lambda: held.service.budget.queued_tokens == BUDGET)
        assert held.metric("densepath_queued_tokens") == BUDGET
        refused = [held.score(GOOD) for _ in range(5)]
        open_gate(held)
        assert [answer.result().status_code for answer in first] == [200] * accepted
    for answer in refused:
        assert (answer.status_code, code(answer)) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
    assert held.metric("densepath_rejections_total", code="overloaded") == 5


def test_row_01_a_full_queue_refuses_before_the_body_is_read(held: Running) -> None:
    accepted = BUDGET // TOKENS
    paths = (b"/v1/rewards", b"/v1/completions", b"/generate", b"/inference/v1/generate", b"/get_reward")
    with ThreadPoolExecutor(accepted) as pool:
        first = [pool.submit(held.score, GOOD) for _ in range(accepted)]
        held.until(lambda: held.service.budget.queued_tokens == BUDGET)
        for path in paths:
            head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" % path
            received = held.speak(head + b"Content-Length: 30000000\r\n\r\n")  # and no body
            assert received.startswith(b"HTTP/1.1 503")
            assert b"retry-after: " in received
        open_gate(held)
        assert [answer.result().status_code for answer in first] == [200] * accepted


def test_row_02_a_large_request_waits_for_its_turn_and_those_behind_it_wait_too(held: Running) -> None:
    with ThreadPoolExecutor(3) as pool:
        small = pool.submit(held.score, *[GOOD] * 5)
        held.until(lambda: held.service.budget.queued_tokens == 30)
        large = pool.submit(held.score, *[GOOD] * 9)
        held.until(lambda: held.service.budget.waiting_tokens == 54)
        refused = held.score(GOOD)
        assert (refused.status_code, code(refused)) == (503, "overloaded")
        open_gate(held)
        assert small.result().status_code == 200
        assert large.result().status_code == 200


def test_row_23_a_deadline_that_passes_in_the_queue_costs_the_engine_nothing(held: Running) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(held.score, *[GOOD] * 9)
        held.until(lambda: held.service.budget.queued_tokens == 54)
        late = pool.submit(
            held.client.post,
            "/v1/rewards",
            content=body(GOOD, GOOD),
            headers=json_headers({"X-Request-Timeout": "0.3"}),
        )
        assert late.result().status_code == 504
        assert held.service.budget.waiting_tokens == 0
        open_gate(held)
        assert first.result().status_code == 200
    held.idle()
    assert held.scorer.scored == 9


def test_row_05_a_client_that_hangs_up_in_the_queue_never_reaches_the_engine(held: Running) -> None:
    content = body(GOOD, GOOD)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(held.score, *[GOOD] * 9)
        held.until(lambda: held.service.budget.queued_tokens == 54)
        with held.connect() as raw:
            raw.sendall(b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            raw.sendall(b"Content-Length: %d\r\n\r\n" % len(content) + content)
            held.until(lambda: held.service.budget.waiting_tokens == 12)
        held.until(lambda: held.service.budget.waiting_tokens == 0)
        open_gate(held)
        assert first.result().status_code == 200
    held.idle()
    assert held.scorer.scored == 9


def test_row_02_a_request_over_the_whole_budget_is_never_admitted(held: Running) -> None:
    answer = held.score(*[GOOD] * 11)
    assert (answer.status_code, code(answer)) == (422, "invalid_request")
    assert "66" in answer.json()["error"]["message"]
    assert "60" in answer.json()["error"]["message"]
    assert not held.now(held.scorer.started.is_set)


def test_row_05_a_client_that_hangs_up_cancels_its_work(held: Running) -> None:
    content = body(GOOD, GOOD, GOOD)
    with held.connect() as raw:
        raw.sendall(b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        raw.sendall(b"Content-Length: %d\r\n\r\n" % len(content) + content)
        held.until(lambda: held.metric("densepath_running_sequences") == 3)
    held.until(lambda: held.scorer.cancelled == 3)
    held.idle()
    assert held.scorer.scored == 0
    labels = {"route": "/v1/rewards", "method": "POST"}
    assert held.metric("densepath_http_requests_total", status="499", **labels) == 1
    assert held.metric("densepath_tokens_total", kind="response") == 0


def test_row_05_a_client_that_hangs_up_in_its_body_leaves_nothing(held: Running) -> None:
    with held.connect() as raw:
        raw.sendall(b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        raw.sendall(b"Content-Length: 100\r\n\r\n{")
        held.until(lambda: held.service.lifecycle.in_flight == 1)
    held.idle()


def test_row_23_a_deadline_cancels_its_work(held: Running) -> None:
    answer = held.client.post(
        "/v1/rewards", content=body(GOOD, GOOD), headers=json_headers({"X-Request-Timeout": "0.2"})
    )
    assert (answer.status_code, code(answer)) == (504, "deadline_exceeded")
    assert held.scorer.cancelled == 2
    held.idle()


def test_row_23_a_deadline_counts_from_the_headers(held: Running) -> None:
    with held.connect() as raw:
        raw.sendall(b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        raw.sendall(b"X-Request-Timeout: 0.2\r\nContent-Length: 100\r\n\r\n{")
        assert raw.recv(1000).startswith(b"HTTP/1.1 504")
    assert not held.now(held.scorer.started.is_set)


def test_a_deadline_that_is_kept_changes_nothing(held: Running) -> None:
    open_gate(held)
    answer = held.client.post(
        "/v1/rewards", content=body(GOOD), headers=json_headers({"X-Request-Timeout": "20"})
    )
    assert answer.status_code == 200


def json_headers(more: dict[str, str]) -> dict[str, str]:
    return {"Content-Type": "application/json", **more}


def test_row_20_a_dead_engine_answers_every_waiter_and_fails_its_probes(held: Running) -> None:
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(held.score, GOOD, GOOD, on_error=mode) for mode in ("fail", "item") * 2]
        held.until(lambda: held.metric("densepath_running_sequences") == 8)
        assert held.metric("densepath_engine_up") == 1
        held.now(lambda: setattr(held.scorer, "dead", True))
        open_gate(held)
        refused = [answer.result() for answer in waiting]
    probes = [held.client.get(path) for path in ("/readyz", "/health")]
    assert held.client.get("/livez").status_code == 200, "the engine may be replaced"
    for answer in [*refused, *probes, held.score(GOOD)]:
        assert (answer.status_code, code(answer)) == (503, "engine_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
    assert held.client.get("/metrics").status_code == 200
    assert held.metric("densepath_engine_up") == 0
    held.idle()
    held.now(lambda: setattr(held.scorer, "dead", False))


async def test_a_service_that_is_loading_is_alive_and_not_ready(pair: Pair) -> None:
    service = make_service(pair)
    transport = httpx.ASGITransport(create_app(service, engine="fake"))
    async with httpx.AsyncClient(base_url="http://x", transport=transport) as client:
        assert (await client.get("/livez")).status_code == 200
        for answer in (await client.get("/readyz"), await client.post("/v1/rewards", json={"items": [TEXT]})):
            assert (answer.status_code, code(answer)) == (503, "engine_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
        assert "densepath_engine_up 0.0" in (await client.get("/metrics")).text
        await service.lifecycle.start()
        assert (await client.get("/readyz")).status_code == 200
        assert "densepath_engine_up 1.0" in (await client.get("/metrics")).text


@pytest.mark.parametrize(
    ("bad", "bad_code"), [(NAN, "non_finite_score"), (RAISING, "internal_error")], ids=["NaN", "raising"]
)
def test_rows_17_19_an_item_that_fails_has_no_number_and_its_neighbours_are_right(
    bad: dict[str, Any], bad_code: str, broken: Running
) -> None:
    answer = broken.score(
        GOOD, bad, GOOD, on_error="item", include=["logprobs", "returns", "tokens"], gamma=0.5
    )
    assert answer.status_code == 200
    first, failed, last = strict(answer)["items"]
    assert set(failed) == {"index", "status", "error"}
    assert (failed["index"], failed["status"], failed["error"]["code"]) == (1, "error", bad_code)
    assert failed["error"]["param"] == "items[1]"
    assert first["rewards"] == last["rewards"] == pytest.approx(expected_rewards(*GOOD.values()), rel=1e-6)
    assert strict(answer)["usage"]["response_tokens"] == 6
    broken.idle()


@pytest.mark.parametrize("bad", [NAN, RAISING], ids=["NaN", "raising"])
def test_rows_17_19_an_item_that_fails_fails_its_request(bad: dict[str, Any], broken: Running) -> None:
    answer = broken.score(GOOD, GOOD, bad)
    assert answer.status_code == 500
    assert strict(answer)["error"]["param"] == "items[2]"
    assert "rewards" not in answer.json()
    broken.idle()


def test_what_nobody_foresaw_is_a_500_that_says_nothing(
    broken: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: Sequence) -> Scored:
        raise RuntimeError(f"{CANARY} /srv/models")

    monkeypatch.setattr(broken.service.lifecycle.served.scorer, "score", fail)
    for mode in ("fail", "item"):
        answer = broken.score(GOOD, on_error=mode)
        assert (answer.status_code, code(answer)) == (500, "internal_error")
        assert CANARY not in answer.text
        assert answer.headers["x-request-id"]
    broken.idle()


def test_another_number_of_scores_is_an_error(broken: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def short(_: Sequence) -> Scored:
        return Scored(np.zeros(2, np.float32), np.zeros(2, np.float32), 0)

    monkeypatch.setattr(broken.service.lifecycle.served.scorer, "score", short)
    answer = broken.score(GOOD)
    assert (answer.status_code, code(answer)) == (500, "internal_error")
    broken.idle()
