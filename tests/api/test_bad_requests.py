"""Every bad request gets the contract's status and code, and leaves nothing behind."""

from __future__ import annotations

import json

import pytest

from api.bad_requests import BAD_REQUESTS, Bad
from api.bodies import CANARY, GOOD
from api.running import Running, expected_rewards
from densepath.errors import BY_CODE


def test_the_table_is_long_and_its_names_are_single() -> None:
    assert len(BAD_REQUESTS) >= 60
    assert len({bad.name for bad in BAD_REQUESTS}) == len(BAD_REQUESTS)


@pytest.mark.parametrize("bad", BAD_REQUESTS, ids=lambda bad: bad.name)
def test_a_bad_request_is_refused_in_words(bad: Bad, served: Running) -> None:
    headers = {"X-Request-Id": "asked-1", "X-Canary": CANARY, **bad.headers}
    if bad.content_type is not None:
        headers["Content-Type"] = bad.content_type
    answer = served.client.request(bad.method, f"{bad.path}?q={CANARY}", content=bad.content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (bad.status, bad.code), answer.text
    error = answer.json()["error"]
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == BY_CODE[bad.code].type
    assert error["message"]
    assert bad.param is None or error["param"] == bad.param
    assert answer.headers["x-request-id"] == "asked-1"
    assert CANARY not in answer.text
    assert CANARY not in str(answer.headers)
    assert len(answer.content) < 1000
    still_right(served)


def still_right(served: Running) -> None:
    """Healthy, idle, and right."""
    assert served.client.get("/readyz").status_code == 200
    answer = served.score(GOOD)
    assert answer.status_code == 200
    rewards = json.loads(answer.text, parse_constant=pytest.fail)["items"][0]["rewards"]
    assert rewards == pytest.approx(expected_rewards(*GOOD.values()), rel=1e-6)
    served.idle()
