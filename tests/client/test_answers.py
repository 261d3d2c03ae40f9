from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from densepath.errors import ContextLengthExceededError, InternalError, NonFiniteScoreError
from densepath.wire import MEDIA_TYPE, pack_answer

ITEMS = [
    {"id": "a", "prompt_token_ids": [1], "response_token_ids": [7, 9]},
    {"id": "b", "prompt_token_ids": [1], "response_token_ids": [8]},
]
SPANS = [{"token_ids": [1, 3, 4], "response_mask": [0, 1, 1]}]
TEXT = [{"prompt": "a", "response": "bc"}]

Arrays = dict[str, Any]
Rest = dict[str, Any]


def entry(at: int = 0, **fields: Any) -> Callable[[Arrays, Rest], None]:
    return lambda arrays, rest: rest["items"][at].update(fields)


def array(name: str, value: Any) -> Callable[[Arrays, Rest], None]:
    return lambda arrays, rest: arrays.update({name: value})


def without(name: str) -> Callable[[Arrays, Rest], None]:
    return lambda arrays, rest: arrays.pop(name)


def rest(**fields: Any) -> Callable[[Arrays, Rest], None]:
    return lambda arrays, rest: rest.update(fields)


def swap(arrays: Arrays, rest: Rest) -> None:
    rest["items"].reverse()


def swap_and_renumber(arrays: Arrays, rest: Rest) -> None:
    rest["items"].reverse()
    for at, item in enumerate(rest["items"]):
        item["index"] = at


def shorter(arrays: Arrays, rest: Rest) -> None:
    arrays["rewards"] = arrays["rewards"][:-1]
    arrays["offsets"][-1] -= 1


def failed_with_rewards(arrays: Arrays, rest: Rest) -> None:
    rest["items"][0] = {"index": 0, "id": "a", "status": "error", "error": {}}


F32 = np.float32


@pytest.mark.parametrize(
    "alter",
    [
        without("rewards"),
        without("offsets"),
        array("rewards", np.zeros(3)),
        array("rewards", np.zeros(4, F32)),
        array("rewards", np.zeros((3, 1), F32)),
        array("rewards", np.array([1, np.nan, 1], F32)),
        array("rewards", np.array([1, np.inf, 1], F32)),
        array("offsets", np.array([0, 2, 3], np.int32)),
        array("offsets", np.array([0, 3], np.int64)),
        array("offsets", np.array([0, 1, 3], np.int64)),
        array("offsets", np.array([1, 2, 3], np.int64)),
        array("offsets", np.array([0, 4, 3], np.int64)),
        array("offsets", np.array([0, 0, 3], np.int64)),
        without("sft_logprobs"),
        without("reference_logprobs"),
        array("sft_logprobs", np.zeros(2, F32)),
        array("reference_logprobs", np.full(3, -np.inf, F32)),
        array("returns", np.zeros(3, np.int64)),
        swap,
        swap_and_renumber,
        shorter,
        failed_with_rewards,
        rest(items=[]),
        rest(items=None),
        rest(items=[None, None]),
        rest(model_version=None),
        rest(model_version=""),
        rest(usage=None),
        rest(usage={"prompt_tokens": 1}),
        rest(usage=dict.fromkeys(("prompt_tokens", "response_tokens", "cached_tokens"), -1)),
        entry(index=1),
        entry(id="z"),
        entry(id=None),
        entry(status="maybe"),
        entry(sum=None),
        entry(sum="3"),
        entry(sum=True),
        entry(sum=10**400),
        entry(ended=None),
        entry(ended=1),
        entry(tokens=["a"]),
        entry(tokens=[1, 2]),
        entry(tokens=None),
        entry(response_token_ids=[7]),
        entry(response_token_ids=[7.0, 9.0]),
        entry(response_token_ids=[[7], [9, 9]]),
        entry(response_token_ids=None),
    ],
)
def test_a_malformed_answer_is_an_error_and_never_numbers(client: Any, service: Any, alter: Any) -> None:
    client.score(ITEMS, include=["logprobs", "returns", "tokens"])
    service.alter = alter
    with pytest.raises(InternalError, match="malformed"):
        client.score(ITEMS, include=["logprobs", "returns", "tokens"], on_error="item")
    assert len(service.scored()) == 2


@pytest.mark.parametrize(
    ("items", "alter"),
    [
        (SPANS, entry(positions=None)),
        (SPANS, entry(positions=[0, 1])),
        (SPANS, entry(positions=[1])),
        (TEXT, entry(response_token_ids=None)),
        (TEXT, entry(offsets=None)),
        (TEXT, entry(offsets=[[0, 1]])),
        (TEXT, entry(offsets=[0, 1])),
        (TEXT, entry(tokens=None)),
    ],
)
def test_what_a_form_promises_must_be_there(client: Any, service: Any, items: Any, alter: Any) -> None:
    client.score(items, include=["tokens"])
    service.alter = alter
    with pytest.raises(InternalError, match="malformed"):
        client.score(items, include=["tokens"])


SAFETENSORS = {"Content-Type": MEDIA_TYPE}


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: httpx.Response(200, json={"items": []}),
        lambda request: httpx.Response(200, content=b"", headers=SAFETENSORS),
        lambda request: httpx.Response(200, content=b"\xff" * 99, headers=SAFETENSORS),
        lambda request: httpx.Response(200, content=pack_answer({}, {}), headers=SAFETENSORS),
        lambda request: httpx.Response(204),
    ],
)
def test_what_is_no_answer_is_an_error(client: Any, service: Any, answer: Any) -> None:
    service.instead = [answer]
    with pytest.raises(InternalError):
        client.score(ITEMS)


def test_an_error_item_where_none_was_asked_for_is_malformed(client: Any, service: Any) -> None:
    service.alter = failed_with_rewards
    with pytest.raises(InternalError, match="malformed"):
        client.score(ITEMS)


def test_an_item_carries_the_class_of_its_code(client: Any, service: Any) -> None:
    def fail(arrays: Arrays, rest: Rest) -> None:
        arrays["rewards"] = arrays["rewards"][:0]
        arrays["offsets"][:] = 0
        for at, error in enumerate([NonFiniteScoreError("no number"), ContextLengthExceededError("9 > 8")]):
            rest["items"][at] = {
                "index": at,
                "id": ITEMS[at]["id"],
                "status": "error",
                "error": error.detail(),
            }

    service.alter = fail
    first, second = client.score(ITEMS, on_error="item")
    assert type(first.error) is NonFiniteScoreError
    assert type(second.error) is ContextLengthExceededError
    assert second.error.message == "9 > 8"
    assert first.reward_T is None


def test_where_nothing_is_scored_the_extras_may_be_absent(client: Any, service: Any) -> None:
    service.alter = without("sft_logprobs")
    empty = {"prompt_token_ids": [], "response_token_ids": [1]}
    (only,) = client.score([empty], include=["logprobs"], on_error="item")
    assert only.error is not None
    assert only.logp_sft_T is None


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"version": 3}', b"[" * 100_000])
def test_a_pair_that_cannot_be_read_is_an_error(connect: Any, body: bytes) -> None:
    with pytest.raises(InternalError):
        connect(lambda request: httpx.Response(200, content=body)).pair()


def test_tokens_that_are_no_integers_are_an_error(connect: Any) -> None:
    with pytest.raises(InternalError):
        connect(lambda request: httpx.Response(200, json={"tokens": [1.5]})).tokenize("a")
