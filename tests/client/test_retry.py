from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from client.conftest import FakeService
from densepath.client.gate import REQUESTS_A_RETRY, RETRIES
from densepath.client.replicas import REQUESTS_A_CONNECTION
from densepath.client.retry import ATTEMPTS
from densepath.errors import (
    BY_CODE,
    DeadlineExceededError,
    DensepathError,
    EngineUnavailableError,
    InternalError,
    LateError,
    OverloadedError,
    QuotaExceededError,
    RequestTimeoutError,
    UnavailableError,
)

ITEM = {"prompt_token_ids": [1], "response_token_ids": [7]}
RETRIED = ("request_timeout", "quota_exceeded", "overloaded", "draining", "engine_unavailable")


def refuse(error: DensepathError) -> Callable[[httpx.Request], httpx.Response]:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return lambda request: httpx.Response(error.status, json={"error": error.detail()}, headers=headers)


def fail(error: Exception) -> Callable[[httpx.Request], httpx.Response]:
    def raise_(request: httpx.Request) -> httpx.Response:
        raise error

    return raise_


@pytest.mark.parametrize("code", RETRIED)
def test_what_may_pass_is_tried_again(client: Any, service: Any, clock: Any, code: str) -> None:
    service.instead = [refuse(BY_CODE[code]("not now"))] * 2
    assert client.score([ITEM])[0].reward_T is not None
    assert len(service.scored()) == 3
    assert len(clock.naps) == 2


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadError("reset"),
        httpx.ReadTimeout("slow"),
        httpx.WriteError("reset"),
        httpx.RemoteProtocolError("cut"),
    ],
)
def test_a_lost_connection_is_tried_again(client: Any, service: Any, clock: Any, error: Exception) -> None:
    service.instead = [fail(error)]
    assert client.score([ITEM])[0].reward_T is not None
    assert len(service.scored()) == 2


@pytest.mark.parametrize("code", sorted(set(BY_CODE) - set(RETRIED)))
def test_what_stays_wrong_is_sent_once_and_raised_as_its_class(
    client: Any, service: Any, clock: Any, code: str
) -> None:
    service.instead = [refuse(BY_CODE[code]("items[0] is wrong", param="items[0].response"))]
    with pytest.raises(BY_CODE[code], match="items\\[0\\] is wrong") as caught:
        client.score([ITEM])
    assert type(caught.value) is BY_CODE[code]
    assert caught.value.param == "items[0].response"
    assert len(service.scored()) == 1
    assert clock.naps == []


@pytest.mark.parametrize("code", RETRIED)
def test_every_retried_code_is_raised_as_its_class_in_the_end(
    client: Any, service: Any, clock: Any, code: str
) -> None:
    service.instead = [refuse(BY_CODE[code]("not now", retry_after=2))] * ATTEMPTS
    with pytest.raises(BY_CODE[code]) as caught:
        client.score([ITEM])
    assert type(caught.value) is BY_CODE[code]
    assert caught.value.retry_after == 2
    assert len(service.scored()) == ATTEMPTS


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 409, 418, 429, 500, 502, 503, 504, 302])
@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"error": 3}', b'{"error": {"code": "new"}}', b"\xff"])
def test_an_unknown_error_goes_by_its_status(
    client: Any, service: Any, clock: Any, status: int, body: bytes
) -> None:
    service.instead = [lambda request: httpx.Response(status, content=body)] * ATTEMPTS
    with pytest.raises(DensepathError) as caught:
        client.score([ITEM])
    builtin = {401: PermissionError, 403: PermissionError, 404: LookupError, 405: LookupError}
    builtin |= {400: ValueError, 418: ValueError, 409: RuntimeError, 408: TimeoutError, 504: TimeoutError}
    builtin |= dict.fromkeys((429, 502, 503), ConnectionError) | dict.fromkeys((500, 302), InternalError)
    assert isinstance(caught.value, builtin[status])
    assert len(service.scored()) == (ATTEMPTS if status in (408, 429, 502, 503) else 1)


def test_retry_after_is_waited_for_and_jitter_comes_on_top(client: Any, service: Any, clock: Any) -> None:
    service.instead = [
        refuse(OverloadedError("full", retry_after=7)),
        refuse(QuotaExceededError("q", retry_after=3)),
    ]
    client.score([ITEM], deadline=60)
    assert 7 <= clock.naps[0] <= 7.25
    assert 3 <= clock.naps[1] <= 3.5


@pytest.mark.parametrize("value", ["", "soon", "-1", "1.5", "Wed, 21 Oct 2026 07:28:00 GMT", "9" * 40, "١"])
def test_a_retry_after_that_is_no_whole_number_is_not_followed(
    client: Any, service: Any, clock: Any, value: str
) -> None:
    headers = [(b"Retry-After", value.encode())]
    service.instead = [lambda request: httpx.Response(503, headers=headers)]
    client.score([ITEM])
    assert clock.naps[0] <= 0.25


def test_a_retry_after_past_the_deadline_is_not_waited_for(client: Any, service: Any, clock: Any) -> None:
    service.instead = [refuse(OverloadedError("full", retry_after=60))] * 9
    with pytest.raises(DeadlineExceededError) as caught:
        client.score([ITEM], deadline=10)
    assert isinstance(caught.value.__cause__, OverloadedError)
    assert caught.value.__cause__.retry_after == 60
    assert clock.naps == []
    assert len(service.scored()) == 1


def test_with_a_deadline_it_is_tried_for_as_long_as_there_is_time(
    client: Any, service: Any, clock: Any
) -> None:
    service.instead = [refuse(EngineUnavailableError("starting", retry_after=1))] * 1000
    with pytest.raises(DeadlineExceededError):
        client.score([ITEM], deadline=120)
    assert sum(clock.naps) < 120
    assert len(service.scored()) > ATTEMPTS
    assert max(clock.naps) <= 1 + 8


def test_the_service_is_told_the_time_that_is_left(client: Any, service: Any, clock: Any) -> None:
    service.instead = [refuse(OverloadedError("full", retry_after=4))]
    client.score([ITEM], deadline=30)
    first, second = (float(request.headers["x-request-timeout"]) for request in service.scored())
    assert first == 30
    assert second == pytest.approx(30 - clock.naps[0], abs=1e-3)
    timeout = service.scored()[1].extensions["timeout"]
    assert timeout["read"] == pytest.approx(second, abs=1e-3)
    assert timeout["connect"] == 5
    client.score([ITEM])
    assert "x-request-timeout" not in service.scored()[-1].headers


def test_a_read_that_the_deadline_cuts_short_is_the_deadlines(client: Any, service: Any, clock: Any) -> None:
    def hang(request: httpx.Request) -> httpx.Response:
        clock.now += request.extensions["timeout"]["read"]
        raise httpx.ReadTimeout("slow")

    service.instead = [hang]
    with pytest.raises(DeadlineExceededError):
        client.score([ITEM], deadline=10)
    assert clock.now == 1010


def test_the_deadline_is_of_all_requests_of_a_call_together(client: Any, service: Any, clock: Any) -> None:
    service.limits["max_items"] = 1

    def slow(request: httpx.Request) -> httpx.Response:
        clock.now += 4
        return service.rewards(request)

    service.instead = [slow] * 9
    with pytest.raises(LateError):
        client.score([ITEM] * 9, deadline=10)
    assert len(service.scored()) == 3


def test_a_connection_that_stays_lost_is_unavailable(connect: Any, clock: Any) -> None:
    client = connect(fail(httpx.ConnectError("refused")))
    with pytest.raises(UnavailableError, match="ConnectError") as caught:
        client.score([ITEM])
    assert type(caught.value) is UnavailableError
    assert len(clock.naps) == ATTEMPTS - 1


def test_jitter_spreads_and_grows(client: Any, service: Any, clock: Any) -> None:
    service.instead = [refuse(RequestTimeoutError("slow"))] * 200
    with pytest.raises(DeadlineExceededError):
        client.score([ITEM], deadline=400)
    bounds = [min(0.25 * 2**n, 8) for n in range(len(clock.naps))]
    assert all(0 <= nap <= bound for nap, bound in zip(clock.naps, bounds, strict=True))
    assert len(set(clock.naps)) == len(clock.naps)
    assert max(clock.naps[5:]) > 4


def test_an_answer_that_cannot_be_decoded_is_not_tried_again(client: Any, service: Any, clock: Any) -> None:
    service.instead = [
        lambda request: httpx.Response(200, headers={"Content-Encoding": "gzip"}, content=b"no")
    ]
    with pytest.raises(InternalError):
        client.score([ITEM])
    assert len(service.scored()) == 1


@pytest.mark.parametrize("deadline", [None, 1e6])
def test_row_43_a_storm_is_not_multiplied_by_the_number_of_requests(
    client: Any, service: Any, clock: Any, deadline: float | None
) -> None:
    n_items, service.limits["max_items"] = 600, 1
    started = clock.now

    def every_second(request: httpx.Request) -> httpx.Response:
        service.instead.append(every_second)
        if len(service.scored()) % 2:
            return refuse(OverloadedError("full", retry_after=0))(request)
        return service.rewards(request)  # type: ignore[no-any-return]

    service.instead = [every_second]
    with pytest.raises(UnavailableError, match=r"retry budget .* is spent .* last failure: full") as caught:
        client.score([ITEM] * n_items, deadline=deadline)
    assert isinstance(caught.value.__cause__, OverloadedError)
    assert caught.value.retry_after == 0
    n_attempts, seconds = len(service.requests), clock.now - started
    assert n_attempts <= 1 + n_items + RETRIES + (1 + n_items) // REQUESTS_A_RETRY + seconds
    assert n_attempts > RETRIES


def test_few_failures_among_many_requests_are_within_the_budget(
    client: Any, service: Any, clock: Any
) -> None:
    n_items, service.limits["max_items"] = 400, 1

    def every_tenth(request: httpx.Request) -> httpx.Response:
        service.instead.append(every_tenth)
        if len(service.scored()) % 10 == 0:
            raise httpx.ReadError("reset")
        return service.rewards(request)  # type: ignore[no-any-return]

    service.instead = [every_tenth]
    assert len(client.score([ITEM] * n_items)) == n_items
    assert len(service.scored()) == pytest.approx(n_items * 10 / 9, abs=2)


def test_one_request_in_a_hundred_ends_its_connection(client: Any, service: FakeService) -> None:
    for _ in range(2 * REQUESTS_A_CONNECTION - 1):
        client.score([ITEM])
    closing = [request.headers.get("connection") == "close" for request in service.requests]
    assert [n for n, ends in enumerate(closing, 1) if ends] == [100, 200]
