"""What an answer holds: every form, both encodings, and each thing that can be included."""

from __future__ import annotations

import itertools
import json
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.bodies import CHAT, GOOD, JSON, SAFETENSORS, SPANS, TEXT, body, packed
from api.running import CONTEXT_LENGTH, Running, expected, expected_rewards
from checkpoints import make_tokenizer
from densepath import sequences
from densepath.wire import PackedRequest, pack_request, unpack_answer

EOS = 2
SEQUENCES = [([1, 10, 11], [12, 13, 2]), ([1], [7]), ([5, 6, 7, 8], [20, 21, 22, 23, 24])]
ARRAYS = ("rewards", "sft_logprobs", "reference_logprobs", "returns")
EVERYTHING = {"include": ["logprobs", "returns", "tokens"], "gamma": 0.9}


def post(served: Running, content: bytes, sent: str, accept: str) -> httpx.Response:
    answer = served.client.post(
        "/v1/rewards", content=content, headers={"Content-Type": sent, "Accept": accept}
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == accept
    return answer


def read(answer: httpx.Response) -> dict[str, Any]:
    """Either form of an answer as one: the arrays of each item, float32, beside its fields."""
    if answer.headers["content-type"] == JSON:
        fields = json.loads(answer.text, parse_constant=pytest.fail)
        for item in fields["items"]:
            item.update({name: np.array(item[name], np.float32) for name in ARRAYS if name in item})
        return dict(fields)
    arrays, fields = unpack_answer(answer.content)
    offsets = arrays.pop("offsets")
    assert offsets.dtype == np.int64
    assert all(array.dtype == np.float32 for array in arrays.values())
    for i, item in enumerate(fields["items"]):  # type: ignore[arg-type]
        rows = slice(offsets[i], offsets[i + 1])
        item.update({name: array[rows] for name, array in arrays.items()})
    return fields


def both_requests(mask: bool) -> tuple[bytes, bytes]:
    """The same request in JSON and in safetensors."""
    ids = ["first", None, "third"]
    sequences_N = [prompt + response for prompt, response in SEQUENCES]
    masks_N = [[0] * len(prompt) + [1] * len(response) for prompt, response in SEQUENCES]
    if mask:
        masks_N[2] = [0, 1, 0, 0, 1, 1, 0, 0, 1]
        items: list[dict[str, Any]] = [
            {"token_ids": token_ids, "response_mask": mask_L}
            for token_ids, mask_L in zip(sequences_N, masks_N, strict=True)
        ]
    else:
        items = [{"prompt_token_ids": p, "response_token_ids": r} for p, r in SEQUENCES]
    lengths = [len(token_ids) for token_ids in sequences_N]
    blob = PackedRequest(
        token_ids=np.array(list(itertools.chain(*sequences_N)), np.int32),
        offsets=np.cumsum([0, *lengths]),
        response_start=None if mask else np.array([len(prompt) for prompt, _ in SEQUENCES]),
        response_mask=np.array(list(itertools.chain(*masks_N)), np.uint8) if mask else None,
        request={"ids": ids, **EVERYTHING},
    )
    with_ids = [{**item, "id": i} for item, i in zip(items, ids, strict=True)]
    return body(*with_ids, **EVERYTHING), pack_request(blob)


@pytest.mark.parametrize("mask", [False, True], ids=["tokens", "spans"])
def test_both_encodings_are_equal_to_the_bit_either_way(mask: bool, served: Running) -> None:
    requests = dict(zip((JSON, SAFETENSORS), both_requests(mask), strict=True))
    found = [
        read(post(served, requests[sent], sent, accept))
        for sent in (JSON, SAFETENSORS)
        for accept in (JSON, SAFETENSORS)
    ]
    for answer in found[1:]:
        assert answer["usage"] == found[0]["usage"]
        for ours, theirs in zip(answer["items"], found[0]["items"], strict=True):
            assert ours.keys() == theirs.keys()
            for name, value in ours.items():
                if name in ARRAYS:
                    assert value.tobytes() == theirs[name].tobytes()
                else:
                    assert value == theirs[name]


def test_numbers_are_the_definition(served: Running) -> None:
    answer = read(post(served, both_requests(mask=False)[0], JSON, JSON))
    for item, (prompt, response) in zip(answer["items"], SEQUENCES, strict=True):
        sft_T, reference_T = expected(sequences.from_response(prompt, response))
        assert item["sft_logprobs"].tolist() == sft_T.tolist()
        assert item["reference_logprobs"].tolist() == reference_T.tolist()
        assert item["rewards"].tolist() == (sft_T - reference_T).tolist()
        assert item["sum"] == pytest.approx(sum(map(float, sft_T - reference_T)), rel=1e-6)
        returns = [sum(0.9**k * r for k, r in enumerate(item["rewards"][t:])) for t in range(len(response))]
        assert item["returns"] == pytest.approx(returns, rel=1e-5)
        assert item["ended"] == (response[-1] == EOS)
        assert item["response_token_ids"] == response
        assert "positions" not in item
        assert "offsets" not in item
    assert [item.get("id", "none") for item in answer["items"]] == ["first", "none", "third"]
    assert [item["index"] for item in answer["items"]] == [0, 1, 2]
    assert answer["usage"] == {"prompt_tokens": 8, "response_tokens": 9, "cached_tokens": 0}
    assert answer["model_version"] == served.pair.version
    assert (answer["object"], answer["model"]) == ("rewards", "default")
    assert answer["id"].startswith("rw-")


def test_spans_name_their_positions(served: Running) -> None:
    item = read(post(served, both_requests(mask=True)[0], JSON, SAFETENSORS))["items"][2]
    assert item["positions"] == [1, 4, 5, 8]
    assert item["response_token_ids"] == [6, 20, 21, 24]
    every = served.score({"prompt_token_ids": [5], "response_token_ids": [6, 7, 8, 20, 21, 22, 23, 24]})
    rewards = every.json()["items"][0]["rewards"]
    assert item["rewards"].tolist() == pytest.approx([rewards[i - 1] for i in (1, 4, 5, 8)])


def test_nothing_is_included_that_was_not_asked_for(served: Running) -> None:
    tokens, spans, text, chat = served.score(GOOD, SPANS, TEXT, CHAT).json()["items"]
    plain = {"index", "status", "rewards", "sum", "ended"}
    assert tokens.keys() == plain
    assert spans.keys() == plain | {"positions"}
    assert text.keys() == chat.keys() == plain | {"response_token_ids"}
    bare, fields = unpack_answer(post(served, body(GOOD), JSON, SAFETENSORS).content)
    assert bare.keys() == {"rewards", "offsets"}
    assert fields["items"][0].keys() == plain - {"rewards"}  # type: ignore[index]


@pytest.mark.parametrize("gamma", [0, 0.0, 0.5, 1, 1.0])
def test_returns_discount(gamma: float, served: Running) -> None:
    [item] = served.score(GOOD, include=["returns"], gamma=gamma).json()["items"]
    running = 0.0
    want: list[float] = []
    for reward in reversed(item["rewards"]):
        running = reward + gamma * running
        want.insert(0, running)
    assert item["returns"] == pytest.approx(want, rel=1e-5)


def test_a_text_is_what_its_ids_are(served: Running) -> None:
    tokenizer = make_tokenizer()
    for append_eos in (False, True):
        item = served.score(
            {"prompt": "the sum", "response": "five<|end|>", "append_eos": append_eos}, include=["tokens"]
        ).json()["items"][0]
        ids = tokenizer("five<|end|>", add_special_tokens=False)["input_ids"] + [EOS] * append_eos
        assert item["response_token_ids"] == ids
        assert item["rewards"] == pytest.approx(expected_rewards(tokenizer("the sum")["input_ids"], ids))
        assert item["ended"] is True
        assert item["tokens"] == [tokenizer.decode([i]) for i in ids]
        assert item["offsets"][-1] == ([11, 11] if append_eos else [4, 11])


def test_a_chat_is_its_template(served: Running) -> None:
    tokenizer = make_tokenizer()
    messages = [{"role": "system", "content": "sum"}, {"role": "user", "content": "two and three"}]
    [item] = served.score({"messages": messages, "response": "five"}).json()["items"]
    parts = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]
    variables = {"chat_template_kwargs": {"enable_thinking": False}}
    [again] = served.score({"messages": parts, "response": "five", **variables}).json()["items"]
    assert again == item
    prompt = "<|system|>sum<|end|><|user|>two and three<|end|><|assistant|>"
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    response_ids = tokenizer("five", add_special_tokens=False)["input_ids"]
    assert item["rewards"] == pytest.approx(expected_rewards(prompt_ids, response_ids))
    assert item["ended"] is False


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12))
def test_offsets_slice_the_response(served: Running, response: str) -> None:
    item = {"prompt": "a", "response": response}
    answer = served.score(item, include=["tokens"])
    assert answer.status_code == 200
    [found] = answer.json()["items"]
    covered = 0
    for start, end in found["offsets"]:
        assert 0 <= start <= covered  # parts of one character share it
        assert start <= end
        assert response[start:end] or start == end
        covered = max(covered, end)
    assert covered == len(response)
    assert len(found["offsets"]) == len(found["tokens"]) == len(found["rewards"])


def test_a_sequence_may_fill_the_context(served: Running) -> None:
    [item] = served.score({"prompt_token_ids": [5], "response_token_ids": [6] * (CONTEXT_LENGTH - 1)}).json()[
        "items"
    ]
    assert len(item["rewards"]) == CONTEXT_LENGTH - 1
    too_long = served.score({"prompt_token_ids": [5], "response_token_ids": [6] * CONTEXT_LENGTH})
    assert str(CONTEXT_LENGTH) in too_long.json()["error"]["message"]
    assert str(CONTEXT_LENGTH + 1) in too_long.json()["error"]["message"]


BAD_ITEMS = [
    {"id": "b", **GOOD, "prompt_token_ids": []},
    {"id": "b", **GOOD, "response_token_ids": [True]},
    {"id": "b", **GOOD, "response_token_ids": [320]},
    {"id": "b", "prompt": "", "response": "a"},
    {"id": "b", "prompt": "a"},
    {"id": "b", "messages": [{"role": "nobody", "content": ""}], "response": "a"},
    {"id": "b", **SPANS, "response_mask": [1, 0, 0, 0]},
    {"id": "b", **GOOD, **TEXT},
]


@pytest.mark.parametrize("accept", [JSON, SAFETENSORS])
@pytest.mark.parametrize("bad", BAD_ITEMS, ids=range(len(BAD_ITEMS)))
def test_row_47_a_bad_item_leaves_its_neighbours_alone(
    bad: dict[str, Any], accept: str, served: Running
) -> None:
    good = [
        {"id": str(i), "prompt_token_ids": p, "response_token_ids": r} for i, (p, r) in enumerate(SEQUENCES)
    ]
    items = [good[0], bad, good[1], good[2], {}, "no item"]
    answer = read(post(served, body(*items, on_error="item", **EVERYTHING), JSON, accept))
    found = answer["items"]
    assert [item["status"] for item in found] == ["ok", "error", "ok", "ok", "error", "error"]
    assert [item["index"] for item in found] == list(range(6))
    assert [item.get("id") for item in found] == ["0", "b", "1", "2", None, None]
    for item, (prompt, response) in zip([found[0], found[2], found[3]], SEQUENCES, strict=True):
        assert item["rewards"].tolist() == pytest.approx(expected_rewards(prompt, response))
    for i in (1, 4, 5):
        assert all(len(found[i].pop(name, ())) == 0 for name in ARRAYS)
        assert found[i].keys() - {"id"} == {"index", "status", "error"}
        assert found[i]["error"]["param"].startswith(f"items[{i}]")
    assert answer["usage"]["response_tokens"] == 9
    failed = served.score(*items)
    assert failed.status_code == 422
    assert failed.json()["error"]["param"].startswith("items[1]")
    served.idle()


def test_a_batch_of_bad_items_only_is_answered(served: Running) -> None:
    for accept in (JSON, SAFETENSORS):
        answer = read(post(served, body({}, {}, on_error="item", **EVERYTHING), JSON, accept))
        assert [item["status"] for item in answer["items"]] == ["error", "error"]


def test_a_packed_request_may_leave_its_metadata_out(served: Running) -> None:
    for metadata in ({}, {"other": "x"}):
        answer = post(served, packed(metadata=metadata), SAFETENSORS, JSON)
        assert answer.json()["items"][0]["rewards"] == pytest.approx(expected_rewards([1, 10], [11, 12]))


def test_a_wrong_version_is_refused_before_any_item_is_read(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    monkeypatch.setattr("densepath.api.items._read_item", lambda _, index, __: read.append(index))
    assert served.score(GOOD, model_version="another").status_code == 409
    assert served.score(GOOD, model="another").status_code == 404
    assert read == []


def test_names_and_versions_that_are_served_pass(served: Running) -> None:
    version = served.pair.version
    assert served.score(GOOD, model="default", model_version=version).status_code == 200
    assert served.score(GOOD, model=None, model_version=None).status_code == 200
    content_type = "Application/JSON; charset=utf-8"
    answer = served.client.post("/v1/rewards", content=body(GOOD), headers={"Content-Type": content_type})
    assert answer.status_code == 200
