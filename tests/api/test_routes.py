"""The small routes."""

from __future__ import annotations

import pytest

import densepath
from api.running import CONTEXT_LENGTH, Running, make_service, running
from checkpoints import make_tokenizer
from densepath.pair.pair import Pair


def test_health_and_versions(served: Running) -> None:
    assert served.client.get("/livez").json() == {"status": "alive"}
    for path in ("/readyz", "/health"):
        assert served.client.get(path).json() == {"status": "ready"}
    version = served.pair.version
    assert served.client.get("/version").json() == {
        "version": densepath.__version__,
        "engine": "fake",
        "model_version": version,
    }


def test_the_pair_says_what_a_client_needs(served: Running, pair: Pair) -> None:
    assert served.client.get("/v1/pair").json() == {
        "object": "pair",
        "model": "default",
        "version": pair.version,
        "sources": {"sft": "sft", "reference": "reference"},
        "dtype": "float32",
        "reference_dtype": "float32",
        "verified": {
            "verified": False,
            "reason": "it was not asked for",
            **dict.fromkeys(
                ("at", "against", "sft", "reference", "reward", "limit", "reference_limit", "noise")
            ),
            "probes": 0,
            "tokens": 0,
            "left_out": [],
        },
        "vocab_size": 320,
        "context_length": CONTEXT_LENGTH,
        "tokenizer_fingerprint": pair.tokenizer_fingerprint,
        "chat_template_fingerprint": pair.chat_template_fingerprint,
        "eos_token_ids": [2],
        "limits": {"max_items": 8, "max_body_bytes": 200_000, "max_queued_tokens": 200},
    }


def test_models_are_the_pair_and_both_sides(served: Running) -> None:
    found = served.client.get("/v1/models").json()
    assert found["object"] == "list"
    assert [card["id"] for card in found["data"]] == ["default", "sft", "reference", "dpr-teacher"]


@pytest.mark.parametrize("text", ["the sum", "", "five<|end|>", "汉字 🎉 é", "\x00\n"])
@pytest.mark.parametrize("add", [True, False])
def test_tokenize_and_back(text: str, add: bool, served: Running) -> None:
    tokenizer = make_tokenizer()
    asked = {"prompt": text, "add_special_tokens": add, "return_token_strs": True}
    found = served.client.post("/tokenize", json=asked).json()
    ids = tokenizer(text, add_special_tokens=add)["input_ids"]
    assert found["tokens"] == ids
    assert (found["count"], found["max_model_len"]) == (len(ids), CONTEXT_LENGTH)
    assert found["token_strs"] == tokenizer.convert_ids_to_tokens(ids)
    back = served.client.post("/detokenize", json={"tokens": ids}).json()
    assert back == {"prompt": ("<|begin|>" if add else "") + text}


def test_a_padded_id_has_no_text(served: Running) -> None:
    back = served.client.post("/detokenize", json={"tokens": [90, 319, 74]}).json()
    assert back == served.client.post("/detokenize", json={"tokens": [90, 74]}).json()


def test_tokenize_a_chat(served: Running) -> None:
    messages = [{"role": "user", "content": "sum"}]
    for add, end in ((True, "<|assistant|>"), (False, "")):
        asked = {"messages": messages, "add_generation_prompt": add}
        found = served.client.post("/tokenize", json=asked).json()
        text = served.client.post("/detokenize", json={"tokens": found["tokens"]}).json()["prompt"]
        assert text == "<|user|>sum<|end|>" + end


def test_the_template_s_variables_reach_it(pair: Pair) -> None:
    template = "{{ 'quick' if quick }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    with running(make_service(pair, chat_template=template)) as served:
        asked = {"messages": messages, "chat_template_kwargs": {"quick": True}}
        found = served.client.post("/tokenize", json=asked).json()["tokens"]
        text = served.client.post("/detokenize", json={"tokens": found}).json()["prompt"]
        assert text == "quicka\nb"
        plain, quick = (
            served.score({"messages": messages, "response": "c", "chat_template_kwargs": each}).json()[
                "items"
            ][0]
            for each in (None, {"quick": True})
        )
        assert plain["rewards"] != quick["rewards"]


def test_a_template_at_fault_is_named_and_not_the_messages(pair: Pair) -> None:
    with running(make_service(pair, chat_template="{{ settings.name }}")) as served:
        answer = served.score({"messages": [{"role": "user", "content": "a"}], "response": "b"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_item")
        assert "the pair's chat template fails on any chat" in answer.json()["error"]["message"]


def test_a_pair_without_a_chat_template_says_so(pair: Pair) -> None:
    with running(make_service(pair, chat_template=None)) as served:
        answer = served.score({"messages": [{"role": "user", "content": "a"}], "response": "b"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_item")
        assert "no chat template" in answer.json()["error"]["message"]
