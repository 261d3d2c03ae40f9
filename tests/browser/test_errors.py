"""Errors are shown as the API says them, waiting is said, and work can be cancelled."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Request, Route, expect

from browser.conftest import OpenPage
from browser.playground import ask, chat, signed
from live import Demo

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

REWARDS = "**/v1/rewards"


def answer(route: Route, status: int, code: str, message: str, **headers: str) -> None:
    error = {"message": message, "type": "server_error", "param": None, "code": code}
    route.fulfill(
        status=status,
        headers={"Content-Type": "application/json", "X-Request-Id": "req-7", **headers},
        body=json.dumps({"error": error}),
    )


def test_a_bad_response_leaves_the_other_shown(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    page.fill("copy: velvet", "velvet", "")
    page.page.get_by_label("Append the end-of-sequence token").uncheck()
    page.score()
    right, empty = ask(
        demo.url,
        chat("copy: velvet", "velvet", append_eos=False),
        chat("copy: velvet", "", append_eos=False),
    )
    assert page.figure("sum") == signed(right["sum"])
    card = page.card("B")
    for words in (empty["error"]["message"], empty["error"]["code"], empty["error"]["param"]):
        expect(card).to_contain_text(words)
    assert card.locator(".figures, .token, svg").count() == 0  # no 0 where there is no score
    expect(page.page.locator("#difference")).to_be_hidden()
    expect(page.status).to_contain_text("Response B is not scored.")


@pytest.mark.parametrize(("prompt", "response"), [("", "velvet"), ("a" * 5000, "velvet")])
def test_the_apis_own_errors(prompt: str, response: str, demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    page.fill(prompt, response, form="Text")
    with page.page.expect_response(REWARDS) as answered:
        page.page.get_by_role("button", name="Score").click()
    [result] = ask(demo.url, {"prompt": prompt, "response": response, "append_eos": True})
    card = page.card("A")
    for words in (result["error"]["message"], result["error"]["code"]):
        expect(card).to_contain_text(words)
    expect(card).to_contain_text(f"request {answered.value.headers['x-request-id']}")
    assert page.tokens("A").count() == 0


def test_it_waits_as_long_as_a_starting_service_says(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url, failures=True)
    page.scored()
    tries: list[str] = []

    def starting(route: Route, request: Request) -> None:
        tries.append(request.url)
        if len(tries) > 1:
            return route.continue_()
        return answer(route, 503, "engine_unavailable", "the pair is being loaded", **{"Retry-After": "1"})

    page.page.route(REWARDS, starting)
    page.page.get_by_role("button", name="Score").click()
    expect(page.problem).to_contain_text("the pair is being loaded")
    expect(page.problem).to_contain_text("engine_unavailable · status 503 · request req-7")
    expect(page.status).to_have_text("Trying again in 1 s.")
    page.scored()
    expect(page.problem).to_be_empty()
    assert len(tries) == 2


def test_a_wait_is_cancelled(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url, failures=True)
    page.scored()
    page.page.route(
        REWARDS,
        lambda route: answer(route, 503, "overloaded", "too much is queued", **{"Retry-After": "600"}),
    )
    page.page.get_by_role("button", name="Score").click()
    expect(page.status).to_have_text("Trying again in 600 s.")
    page.page.get_by_role("button", name="Cancel").click()
    expect(page.status).to_have_text("Cancelled.")
    expect(page.page.get_by_role("button", name="Score")).to_be_focused()
    expect(page.page.get_by_role("button", name="Cancel")).to_be_hidden()


def test_a_slow_answer_shows_work_and_is_cancelled(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    held: list[Route] = []
    page.page.route(REWARDS, lambda route: held.append(route))
    page.page.get_by_role("button", name="Score").click()
    expect(page.page.get_by_role("button", name="Scoring…")).to_be_visible()
    expect(page.status).to_have_text("Scoring…")
    with page.page.expect_event("requestfailed"):
        page.page.get_by_role("button", name="Cancel").click()
    expect(page.status).to_have_text("Cancelled.")
    page.page.unroute(REWARDS)
    page.score()


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (500, "non_finite_score", "a log-probability is not finite"),
        (504, "deadline_exceeded", "the deadline has passed"),
    ],
)
def test_other_errors_are_said_once(
    status: int, code: str, message: str, demo: Demo, open_page: OpenPage
) -> None:
    page = open_page(demo.url, failures=True)
    page.scored()
    page.page.route(REWARDS, lambda route: answer(route, status, code, message))
    page.page.get_by_role("button", name="Score").click()
    expect(page.problem).to_contain_text(message)
    expect(page.problem).to_contain_text(f"{code} · status {status} · request req-7")
    assert page.page.get_by_role("alert").count() == 1


def test_a_network_that_is_down_and_an_answer_of_something_else(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url, failures=True)
    page.scored()
    page.page.route(REWARDS, lambda route: route.abort("connectionrefused"))
    page.page.get_by_role("button", name="Score").click()
    expect(page.problem).to_contain_text("The service cannot be reached")
    page.page.unroute(REWARDS)
    page.page.route(REWARDS, lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
    page.page.get_by_role("button", name="Score").click()
    expect(page.problem).to_contain_text("status 502")
    expect(page.problem).not_to_contain_text("Bad gateway")
    page.page.unroute(REWARDS)
    page.score()
    expect(page.problem).to_be_empty()


def test_what_is_typed_is_in_no_log_and_no_query(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.url)
    page.scored()
    urls: list[str] = []
    page.page.on("request", lambda request: urls.append(request.url))
    secret: dict[str, Any] = {"prompt": "copy: zqxjkw", "response": "zqxjkw"}
    page.fill(secret["prompt"], secret["response"])
    page.score()
    assert urls == [f"{demo.url}/v1/rewards"]
    assert "zqxjkw" not in demo.log.read_text()
