"""OpenRLHF's route: one sum for each query, of the tokens that reach past its prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.running import Running, make_service, running
from checkpoints import make_tokenizer
from densepath.engine.transformers import TransformersScorer
from densepath.pair.pair import Pair

PROMPT = "<|begin|><|user|>the sum of 3 and 4<|end|><|assistant|>"
PIECES = st.sampled_from(["the sum", " of", "<|end|>", "<|user|>", " ", "\n", "é", "👩", "a", "7"])
TEXT = st.lists(PIECES, min_size=1, max_size=4).map("".join)


@pytest.fixture(scope="module")
def real(pair: Pair, pair_dirs: tuple[Path, Path]) -> Iterator[Running]:
    """The service over the oracle: its numbers are a function of the ids alone."""
    with running(make_service(pair, scorer=TransformersScorer(*pair_dirs, context_length=1024))) as service:
        yield service


def ask(served: Running, query: Any, prompts: Any = None, labels: Any = None) -> httpx.Response:
    body = {"query": query, "prompts": prompts, "labels": labels}
    return served.client.post("/get_reward", json=body)


def test_a_query_gets_the_sum_of_its_response(real: Running) -> None:
    responses = [" 7<|end|>", " 8", " seven, since 3 and 4 make it<|end|>"]
    answer = ask(real, [PROMPT + each for each in responses], [PROMPT] * 3, ["7", None, 7.0])
    assert answer.status_code == 200
    found = answer.json()
    assert found.keys() == {"rewards", "scores", "extra_logs"}
    assert found["scores"] == found["rewards"]

    tokenizer = make_tokenizer()
    ids, *response_ids = tokenizer([PROMPT, *responses], add_special_tokens=False)["input_ids"]
    items = [{"prompt_token_ids": ids, "response_token_ids": each} for each in response_ids]
    sums = [item["sum"] for item in real.score(*items).json()["items"]]
    assert found["rewards"] == pytest.approx(sums, abs=1e-5)
    assert found["extra_logs"] == {
        "response_tokens": [float(len(each)) for each in response_ids],
        "ended": [1.0, 0.0, 1.0],
    }


def test_without_a_prompt_the_first_token_is_excepted(served: Running) -> None:
    ids = make_tokenizer()("the sum of", add_special_tokens=False)["input_ids"]
    [scored] = served.score({"prompt_token_ids": ids[:1], "response_token_ids": ids[1:]}).json()["items"]
    for prompts in (None, [""]):
        assert ask(served, ["the sum of"], prompts).json()["rewards"] == [scored["sum"]]


@settings(max_examples=300, deadline=None)
@given(prompt=TEXT, response=TEXT)
def test_what_reaches_past_the_prompt_is_scored(prompt: str, response: str, served: Running) -> None:
    """Held against the bytes that each token spells, of a tokenizer that loses none."""
    tokenizer = make_tokenizer()
    ids = tokenizer(prompt + response, add_special_tokens=False)["input_ids"]
    ends = np.cumsum([len(token) for token in tokenizer.convert_ids_to_tokens(ids)])
    assert ends[-1] == len((prompt + response).encode())
    expected = int((ends > len(prompt.encode())).sum())
    answer = ask(served, [prompt + response], [prompt])
    if expected == len(ids):
        assert answer.status_code == 422
        assert "first token ends after" in answer.json()["error"]["message"]
    else:
        assert answer.json()["extra_logs"]["response_tokens"] == [expected]


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "another prompt": ({"query": ["a b"], "prompts": ["b"]}, "invalid_item", "[0]: the text does not begin"),
    "an empty response": ({"query": ["a b"], "prompts": ["a b"]}, "invalid_item", "the response is empty"),
    "an empty query": ({"query": [""]}, "invalid_item", "query[0]: "),
    "a prompt within the first token": (
        {"query": ["<|end|>a"], "prompts": ["<|e"]}, "invalid_item", "the first token ends after",
    ),
    "one of several": ({"query": ["a b", "a b"], "prompts": ["a", "b"]}, "invalid_item", "query[1]: "),
    "prompts for others": ({"query": ["a b"], "prompts": ["a", "a"]}, "invalid_item", "2 entries for 1"),
    "no query": ({"query": []}, "invalid_item", "holds 1 to 8"),
    "a query that is no list": ({"query": "a b"}, "invalid_request", "query"),
    "an unknown field": ({"query": ["a b"], "c4n4ry": 1}, "invalid_request", "does not have"),
    "too long": ({"query": ["the" * 200], "prompts": ["t"]}, "context_length_exceeded", "query[0]: "),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_in_the_contracts_words(name: str, served: Running) -> None:
    body, code, words = REFUSED[name]
    answer = served.client.post("/get_reward", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == code
    assert words in answer.json()["error"]["message"]
    assert "c4n4ry" not in answer.text


def test_one_failure_fails_them_all_and_counts(served: Running) -> None:
    bad = make_tokenizer()(" 9", add_special_tokens=False)["input_ids"][-1]
    served.scorer.raise_on_id = bad
    try:
        answer = ask(served, ["a b", "a 9"], ["a", "a"])
    finally:
        served.scorer.raise_on_id = None
    assert answer.status_code == 500
    assert "rewards" not in answer.json()
    served.idle()
    before = served.metric("densepath_tokens_total", kind="response")
    [count] = ask(served, ["a b"], ["a"]).json()["extra_logs"]["response_tokens"]
    assert served.metric("densepath_tokens_total", kind="response") == before + count
