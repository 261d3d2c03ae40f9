"""Rewards sit on the tokens that the answer names, whatever the text: held against the ids alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from api.running import Running, make_service, running
from checkpoints import make_tokenizer
from densepath.engine.transformers import TransformersScorer
from densepath.pair.pair import Pair

#: Any character that UTF-8 can carry: combining marks, joiners, right-to-left, astral planes, NUL.
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
#: Special tokens written as text, which become those tokens, beside what looks like them.
MARKED = st.lists(
    st.one_of(TEXT, st.sampled_from(["<|end|>", "<|user|>", "<|begin|>", "<|en", "d|>", " ", "the sum"])),
    min_size=1,
    max_size=4,
).map("".join)
TRICKY = "e\u0301 👩‍👩‍👧 \u202eabc\u202c <|end|>\x00 ﷽"


@pytest.fixture(scope="module")
def real(pair: Pair, pair_dirs: tuple[Path, Path]) -> Iterator[Running]:
    """The service over the oracle: its numbers are a function of the ids alone."""
    with running(make_service(pair, scorer=TransformersScorer(*pair_dirs, context_length=1024))) as service:
        yield service


def score(served: Running, item: dict[str, Any]) -> dict[str, Any]:
    answer = served.score(item, include=["tokens", "logprobs"])
    assert answer.status_code == 200, answer.text
    [found] = answer.json()["items"]
    return dict(found)


def tokenize(served: Running, **fields: Any) -> list[int]:
    return list(served.client.post("/tokenize", json=fields).json()["tokens"])


def check(served: Running, item: dict[str, Any], prompt_ids: list[int], response: str) -> None:
    found = score(served, item)
    ids = found["response_token_ids"]
    by_ids = score(served, {"prompt_token_ids": prompt_ids, "response_token_ids": ids})
    for name in ("rewards", "sft_logprobs", "reference_logprobs"):
        assert found[name] == by_ids[name], "the ids that it names have these rewards"
    assert len(found["rewards"]) == len(ids) == len(found["tokens"]) == len(found["offsets"])

    tokenizer = make_tokenizer()
    appended = int(item["append_eos"])
    assert tokenizer.decode(ids[: len(ids) - appended]) == response
    assert found["tokens"] == [tokenizer.decode([i]) for i in ids]
    covered = np.zeros(len(response), bool)
    for token, (start, end) in zip(found["tokens"], found["offsets"], strict=True):
        assert 0 <= start <= end <= len(response)
        covered[start:end] = True
        if "\ufffd" not in token and start < end:  # a whole number of characters
            assert response[start:end] == token
    assert covered.all()
    assert found["offsets"] == sorted(found["offsets"])
    if appended:
        assert (ids[-1], found["offsets"][-1]) == (tokenizer.eos_token_id, [len(response)] * 2)


@settings(max_examples=150, deadline=None)
@example(prompt=TRICKY, response=TRICKY, append_eos=True)
@given(prompt=MARKED, response=MARKED, append_eos=st.booleans())
def test_text(prompt: str, response: str, append_eos: bool, real: Running) -> None:
    item = {"prompt": prompt, "response": response, "append_eos": append_eos}
    check(real, item, tokenize(real, prompt=prompt), response)


@settings(max_examples=150, deadline=None)
@example(contents=[TRICKY, TRICKY], response=TRICKY, append_eos=True)
@given(contents=st.lists(MARKED, min_size=1, max_size=3), response=MARKED, append_eos=st.booleans())
def test_chat(contents: list[str], response: str, append_eos: bool, real: Running) -> None:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    item = {"messages": messages, "response": response, "append_eos": append_eos}
    check(real, item, tokenize(real, messages=messages), response)
