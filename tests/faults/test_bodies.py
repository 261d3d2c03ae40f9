"""Bodies that are bad in one way each, on every route that takes one; tests/api/bad_requests.py has more."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from api.bodies import CANARY, CHAT, GOOD, SPANS, TEXT, changed
from api.running import CONTEXT_LENGTH, Running, make_service, pair, read_all, running
from api.test_connection import POST, only_code
from densepath.config import Limits
from densepath.pair.pair import Pair

__all__ = ["pair"]  # a fixture

LIMITS = Limits(max_items=64, max_body_bytes=200_000, max_queued_tokens=6400)
NONE = {"max_new_tokens": 0}
#: Of each route that takes a body: a good one.
BODIES: dict[str, dict[str, Any]] = {
    "/v1/rewards": {"items": [GOOD]},
    "/v1/completions": {"model": "sft", "max_tokens": 0, "prompt_logprobs": 0, "prompt": [1, 2]},
    "/generate": {"return_logprob": True, "sampling_params": NONE, "input_ids": [1, 2]},
    "/inference/v1/generate": {
        "token_ids": [1, 2],
        "sampling_params": {"max_tokens": 0, "prompt_logprobs": 0},
    },
    "/get_reward": {"query": ["the sum five"], "prompts": ["the sum"]},
    "/tokenize": {"prompt": "the sum"},
    "/detokenize": {"tokens": [1, 2]},
}


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Running]:
    """One service; nothing that is refused may reach its engine."""
    with running(make_service(pair, limits=LIMITS)) as service:
        yield service


def refuse(
    served: Running, path: str, content: bytes, *, kind: str = "application/json", **headers: str
) -> int:
    """The status of the answer, which says little, repeats nothing and costs the engine nothing."""
    scored = served.scorer.scored
    answer = served.client.post(path, content=content, headers={"Content-Type": kind, **headers})
    assert answer.json()["error"]["message"]
    assert CANARY not in answer.text
    assert len(answer.content) < 1000
    served.idle()
    assert served.scorer.scored == scored
    return answer.status_code


@pytest.mark.parametrize("path", BODIES)
def test_a_good_body_is_answered(path: str, served: Running) -> None:
    """Or the tests below would show nothing."""
    assert served.client.post(path, json=BODIES[path]).status_code == 200


def test_row_09_very_many_tiny_chunks_are_bounded_in_bytes(served: Running) -> None:
    chunks = b"1\r\n[\r\n" * (LIMITS.max_body_bytes + 1)
    received = served.speak(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    assert only_code(received) == (413, "body_too_large")
    served.idle()


def test_row_09_tiny_chunks_without_an_end_are_bounded_in_time(pair: Pair) -> None:
    with running(make_service(pair, limits=Limits(body_seconds=0.3))) as served, served.connect() as raw:
        raw.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        raw.settimeout(0.02)
        until = time.monotonic() + 20
        received = b""
        while not received:
            assert time.monotonic() < until, "it is still read"
            raw.sendall(b"1\r\n \r\n")
            try:
                received = raw.recv(65536)
            except TimeoutError:
                continue
        raw.settimeout(10)
        assert only_code(received + read_all(raw)) == (408, "request_timeout")


@pytest.mark.parametrize("path", BODIES)
def test_row_10_nothing_is_inflated(path: str, served: Running) -> None:
    bomb = gzip.compress(b'{"items": [' + b" " * 20_000_000)
    assert len(bomb) < LIMITS.max_body_bytes
    for encoding in ("gzip", "deflate", "br", "zstd", "identity"):
        assert refuse(served, path, bomb, **{"Content-Encoding": encoding}) == 415


@pytest.mark.parametrize("depth", [900, 30_000])
@pytest.mark.parametrize("path", BODIES)
def test_row_11_deep_nesting_is_refused(path: str, depth: int, served: Running) -> None:
    for opened, closed in (("[", "]"), ('{"a":', "}")):
        nested = opened * depth + "1" + closed * depth
        assert refuse(served, path, f'{{"{CANARY}": {nested}}}'.encode()) == 400
        assert refuse(served, path, nested.encode()) == 400


@pytest.mark.parametrize("path", BODIES)
def test_row_13_what_is_ambiguous_is_never_taken(path: str, served: Running) -> None:
    good = json.dumps(BODIES[path])
    name = next(iter(BODIES[path]))
    twice = good[:-1] + f', "{name}": {json.dumps(BODIES[path][name])}}}'
    assert refuse(served, path, twice.encode()) == 400
    assert refuse(served, path, f'{{{good[1:-1]}, "{CANARY}": 1}}'.encode()) in (400, 422)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", CANARY):
        assert refuse(served, path, good.encode(), kind=kind) == 415
    for odd in (b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80"):
        assert refuse(served, path, good.encode().replace(b'"', b'"' + odd, 1)) == 400


@pytest.mark.parametrize(
    "content",
    [
        b'{"items": []}',
        changed(GOOD, prompt_token_ids=[]),
        changed(GOOD, response_token_ids=[]),
        changed(SPANS, response_mask=[0, 0, 0, 0]),
        changed(SPANS, response_mask=[1, 1, 1, 1]),
        changed(TEXT, prompt=""),
        changed(TEXT, response=""),
        changed(CHAT, messages=[]),
        changed(CHAT, response=""),
    ],
)
def test_row_14_an_empty_side_is_refused(content: bytes, served: Running) -> None:
    assert refuse(served, "/v1/rewards", content) == 422


@pytest.mark.parametrize("token_id", [-1, 320, 2**31, 2**63, -(2**63) - 1])
def test_row_15_an_id_outside_the_vocabulary_never_reaches_the_engine(token_id: int, served: Running) -> None:
    """The embeddings have the rows 0 to 319."""
    for side in ("prompt_token_ids", "response_token_ids"):
        content = json.dumps({"items": [GOOD, {**GOOD, side: [1, token_id]}]})
        assert refuse(served, "/v1/rewards", content.encode()) == 422
        answer = served.client.post(
            "/v1/rewards", content=content, headers={"Content-Type": "application/json"}
        )
        assert str(answer.json()["error"]["param"]).startswith("items[1]")
    assert served.score({**GOOD, "response_token_ids": [0, 319]}).status_code == 200


@pytest.mark.parametrize("length", [CONTEXT_LENGTH - 1, CONTEXT_LENGTH, CONTEXT_LENGTH + 1])
def test_row_16_the_context_may_be_filled_and_nothing_is_cut(length: int, served: Running) -> None:
    item = {"prompt_token_ids": [1], "response_token_ids": [5] * (length - 1)}
    if length <= CONTEXT_LENGTH:
        assert len(served.score(item).json()["items"][0]["rewards"]) == length - 1
        return
    assert refuse(served, "/v1/rewards", json.dumps({"items": [item]}).encode()) == 422
    message = served.score(item).json()["error"]["message"]
    assert str(length) in message
    assert str(CONTEXT_LENGTH) in message
