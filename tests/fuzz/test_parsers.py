"""Hypothesis over both parsers, from the body of a request to the answer."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import httpx
import numpy as np
from hypothesis import strategies as st

from api.bodies import CHAT, GOOD, JSON, REWARDS, SAFETENSORS, SPANS, TEXT, packed
from fuzz.conftest import Send, fuzz
from test_wire import JSON_VALUES

#: What the service says of a body that it refuses.
REFUSALS = {
    400: {"malformed_body"},
    404: {"model_not_found"},
    409: {"model_version_mismatch"},
    413: {"body_too_large"},
    422: {"invalid_item", "invalid_request", "context_length_exceeded"},
}
WHOLE = {
    "model": "default",
    "include": ["logprobs", "returns", "tokens"],
    "gamma": 0.5,
    "on_error": "item",
    "candidates": 2,
}
WORDS = ["NaN", "Infinity", "-Infinity", "1e400", "-0", "0.0", "1e0", "-1", "320", "true", "null"]
EDGES = [
    sign * (1 << bits) + step for bits in (31, 32, 53, 63, 64) for sign in (1, -1) for step in (-1, 0, 1)
]
#: Pieces that a parser may stumble over, put into a body or in the place of a part of it.
PIECES = st.one_of(
    st.binary(max_size=8),
    st.sampled_from([word.encode() for word in (*WORDS, *map(str, EDGES), "9" * 30, "9" * 5000)]),
    st.sampled_from(
        [b"[" * 300, b'{"a":' * 300, rb"\ud800", rb"\u0000", b"\xff", b"\xef\xbb\xbf", b",", b'"', b"}", b"]"]
    ),
    JSON_VALUES.map(lambda value: json.dumps(value).encode()),
)


@st.composite
def damaged(draw: st.DrawFn, bodies: st.SearchStrategy[bytes]) -> bytes:
    """A body with a few places cut out, doubled or replaced."""
    body = draw(bodies)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(body)))
        end = draw(st.integers(start, min(len(body), start + 16)))
        middle = draw(PIECES | st.just(body[start:end] * 2) | st.just(b""))
        body = body[:start] + middle + body[end:]
    return body


ITEMS = st.sampled_from([GOOD, SPANS, TEXT, CHAT])


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """A request with a few fields of a few items changed."""
    items: Any = [dict(item) for item in draw(st.lists(ITEMS, max_size=4))]
    for item in items:
        for name in draw(st.lists(st.sampled_from([*item, "id", "prompt", "append_eos", "x"]), max_size=2)):
            item[name] = draw(JSON_VALUES | st.integers(-1, 330) | st.lists(st.integers(-2, 330), max_size=8))
    request = {"items": items, **draw(st.sampled_from([{}, WHOLE]))}
    for name in draw(st.lists(st.sampled_from([*WHOLE, "items", "model_version", "x"]), max_size=1)):
        request[name] = draw(JSON_VALUES)
    return request


JSON_BODIES = requests().map(lambda request: json.dumps(request).encode())
ARRAYS = st.sampled_from(
    [
        packed(),
        packed({**WHOLE, "ids": ["a"]}),
        packed({"include": ["returns"]}),
        packed({}, response_start=None),
    ]
)


@st.composite
def arrays(draw: st.DrawFn) -> bytes:
    """A safetensors blob whose arrays have a few odd values, types or lengths."""
    length = draw(st.integers(0, 70))
    dtype = draw(st.sampled_from([np.int64, np.int64, np.int32, np.uint8, np.float32]))
    token_ids_L = np.array(
        draw(st.lists(st.integers(0, 319), min_size=length, max_size=length)), np.int64
    ).astype(dtype)
    if length and dtype != np.uint8 and draw(st.booleans()):
        token_ids_L[draw(st.integers(0, length - 1))] = draw(st.sampled_from([-1, 319, 320, 2**31 - 1]))
    cuts = sorted(draw(st.lists(st.integers(0, length + 1), max_size=4)))
    offsets = np.array([0, *cuts, length], dtype=np.int64)
    few = draw(st.sampled_from([0, 0, 0, 1]))
    if draw(st.booleans()):
        masked = {
            "response_start": None,
            "response_mask": np.array(
                draw(st.lists(st.integers(0, 1), min_size=length - min(few, length), max_size=length)),
                np.uint8,
            ),
        }
    else:
        starts = draw(st.lists(st.integers(-1, 9), min_size=len(cuts) + 1 - few, max_size=len(cuts) + 1))
        masked = {"response_start": np.array(starts, np.int64)}
    fields = draw(st.sampled_from([{}, {**WHOLE, "on_error": "fail"}, WHOLE, {"gamma": 2}]))
    return packed(fields, token_ids=token_ids_L, offsets=offsets, **masked)


@st.composite
def blobs(draw: st.DrawFn) -> bytes:
    """A safetensors blob with another header, of the right length, or with damaged metadata."""
    body = draw(ARRAYS)
    if draw(st.booleans()):
        return body
    size = int.from_bytes(body[:8], "little")
    header = draw(damaged(st.just(body[8 : 8 + size])))
    return len(header).to_bytes(8, "little") + header + body[8 + size :]


def check(answer: httpx.Response, counts: Counter[int]) -> None:
    """An answer is whole and strict JSON or a refusal of the contract; never a fault."""
    counts[answer.status_code] += 1
    if answer.status_code == 200:
        fields = json.loads(answer.text, parse_constant=lambda name: 1 / 0)
        for item in fields["items"]:
            assert (item["status"] == "ok") == ("rewards" in item)
            assert item["status"] != "ok" or len(item["rewards"]) > 0
        return
    assert answer.status_code in REFUSALS, answer.text
    error = answer.json()["error"]
    assert error["code"] in REFUSALS[answer.status_code]
    assert answer.json().keys() == {"error"}
    assert len(answer.content) < 2000


def test_any_json_is_scored_or_refused(send: Send, count: Counter[int]) -> None:
    def answered(body: bytes) -> None:
        check(send("POST", REWARDS, content=body, headers={"Content-Type": JSON}), count)

    fuzz(damaged(JSON_BODIES), answered)
    assert {200, 400, 422} <= count.keys()


def test_any_safetensors_are_scored_or_refused(send: Send, count: Counter[int]) -> None:
    def answered(body: bytes) -> None:
        headers = {"Content-Type": SAFETENSORS, "Accept": JSON}
        check(send("POST", REWARDS, content=body, headers=headers), count)

    fuzz(arrays() | blobs() | damaged(ARRAYS), answered)
    assert {200, 400, 422} <= count.keys()
