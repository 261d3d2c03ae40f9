"""Sequences: every form into one, and what cannot be scored."""

from __future__ import annotations

import copy
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import make_tokenizer
from densepath.errors import ContextLengthExceededError, InvalidItemError
from densepath.sequences import Sequence, Tokenizer, check, from_mask, from_response

ids = st.lists(st.integers(0, 299), min_size=1, max_size=20)
BOS, EOS = 1, 2


@given(ids, ids)
def test_a_response_is_scored_whole(prompt: list[int], response: list[int]) -> None:
    sequence = from_response(prompt, response)
    assert sequence.token_ids_L.tolist() == prompt + response
    assert sequence.scored_ids_T.tolist() == response
    assert sequence.prompt_tokens == len(prompt)
    assert sequence.spans() == [len(prompt), len(prompt) + len(response)]
    assert sequence.token_ids_L.dtype == sequence.positions_T.dtype == np.int64
    mask = [0] * len(prompt) + [1] * len(response)
    assert from_mask(prompt + response, mask).positions_T.tolist() == sequence.positions_T.tolist()


@given(st.lists(st.integers(0, 1), min_size=1, max_size=30).filter(any))
def test_spans_are_the_mask_s_runs(mask: list[int]) -> None:
    sequence = from_mask([5] * (len(mask) + 1), [0, *mask])
    found = np.zeros(len(mask) + 1, int)
    edges = sequence.spans()
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        assert start < end
        found[start:end] += 1
    assert found.tolist() == [0, *mask]
    assert edges == sorted(set(edges))  # runs don't touch


@pytest.mark.parametrize(
    ("token_ids", "mask", "message"),
    [
        ([1, 2], [0, 1, 1], "same length"),
        ([], [], "scores no token"),
        ([1, 2], [0, 0], "scores no token"),
        ([1, 2], [1, 0], "first token"),
        ([1, 2], [0, 2], "0 and 1"),
        ([1, 2], [0, -1], "0 and 1"),
        ([1, 2], [0, 10**30], "0 and 1"),
        ([1, 10**30], [0, 1], "64 bits"),
    ],
)
def test_a_mask_that_scores_nothing_right_is_refused(
    token_ids: list[int], mask: list[int], message: str
) -> None:
    with pytest.raises(InvalidItemError, match=message):
        from_mask(token_ids, mask)


def test_row_14_empty_sides_are_refused() -> None:
    with pytest.raises(InvalidItemError, match="prompt is empty"):
        from_response([], [1])
    with pytest.raises(InvalidItemError, match="response is empty"):
        from_response([1], [])


@given(st.integers(-2, 2) | st.integers(317, 322) | st.integers(-(2**63), 2**63 - 1), st.integers(0, 3))
def test_row_15_ids_are_the_rows_of_both_embeddings(token_id: int, at: int) -> None:
    values = [5, 6, 7, 8]
    values[at] = token_id
    sequence = from_response(values[:2], values[2:])
    if 0 <= token_id < 320:
        check(sequence, embedding_size=320, context_length=4)
        return
    with pytest.raises(InvalidItemError, match=f"index {at} .* 0 to 319"):
        check(sequence, embedding_size=320, context_length=4)


def test_a_padded_id_has_no_text() -> None:
    tokenizer = Tokenizer(make_tokenizer())
    assert tokenizer.decode([90, 310, 74]) == tokenizer.decode([90, 74])
    assert tokenizer.token_strings([90, 310]) == [tokenizer.decode([90]), ""]
    assert tokenizer.vocabulary_strings([90, 310]) == [tokenizer.vocabulary_strings([90])[0], ""]


@pytest.mark.parametrize("length", [63, 64, 65])
def test_row_16_a_sequence_may_be_as_long_as_the_context(length: int) -> None:
    sequence = from_response([5], [6] * (length - 1))
    if length <= 64:
        check(sequence, embedding_size=320, context_length=64)
        return
    with pytest.raises(ContextLengthExceededError, match=r"65 tokens .* 64"):
        check(sequence, embedding_size=320, context_length=64)


def joined(tokenizer: Tokenizer, sequence: Sequence) -> str:
    return tokenizer.decode(sequence.token_ids_L.tolist())


def test_text_is_tokenised_each_side_on_its_own() -> None:
    fast = make_tokenizer()
    tokenizer = Tokenizer(fast)
    sequence = tokenizer.from_text("the sum of tw", "o and three", append_eos=True)
    prompt = fast("the sum of tw")["input_ids"]
    response = fast("o and three", add_special_tokens=False)["input_ids"]
    assert sequence.token_ids_L.tolist() == [*prompt, *response, EOS]
    assert prompt[0] == BOS
    assert sequence.scored_ids_T.tolist() == [*response, EOS]
    assert sequence.offsets_T is not None
    assert sequence.offsets_T[-1] == (11, 11)
    assert "".join("o and three"[a:b] for a, b in sequence.offsets_T) == "o and three"


def test_a_chat_is_not_given_a_second_bos() -> None:
    tokenizer = Tokenizer(make_tokenizer())
    sequence = tokenizer.from_chat([{"role": "user", "content": "sum"}], "five", append_eos=False)
    assert joined(tokenizer, sequence) == "<|begin|><|user|>sum<|end|><|assistant|>five"
    assert sequence.token_ids_L.tolist().count(BOS) == 1


def test_a_template_that_raises_is_the_item_s_error_without_its_text() -> None:
    fast = copy.deepcopy(make_tokenizer())
    fast.chat_template = "{{ raise_exception('no ' + messages[0]['content']) if messages[0].content != 'a' }}"
    with pytest.raises(InvalidItemError, match="chat template refuses") as refused:
        Tokenizer(fast).render([{"role": "user", "content": "c4n4ry"}])
    assert "c4n4ry" not in refused.value.message


def test_append_eos_needs_one() -> None:
    fast = copy.deepcopy(make_tokenizer())
    fast.eos_token = None
    with pytest.raises(InvalidItemError, match="no EOS token"):
        Tokenizer(fast).from_text("a", "b", append_eos=True)


def test_a_tokenizer_s_own_truncation_and_padding_are_off_in_every_thread() -> None:
    fast = copy.deepcopy(make_tokenizer())
    fast.backend_tokenizer.enable_truncation(max_length=4)
    fast.backend_tokenizer.enable_padding(length=4)
    tokenizer = Tokenizer(fast)
    text = "the sum " * 50
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: tokenizer.from_text(text, "five", append_eos=False), range(64)))
    want = make_tokenizer()(text)["input_ids"]
    assert all(sequence.token_ids_L[: len(want)].tolist() == want for sequence in found)


def test_a_long_text_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    fast = copy.deepcopy(make_tokenizer())
    fast.model_max_length = 4
    with caplog.at_level(logging.WARNING):
        Tokenizer(fast).from_text("the sum " * 50, "five " * 50, append_eos=False)
    assert caplog.records == []
