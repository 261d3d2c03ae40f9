"""vLLM's scoring routes over the fake engine: shapes, refusals, and the errors in the originals' words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from api.running import CONTEXT_LENGTH, Running
from densepath.engine.fake import FakeScorer

SCORING = {"model": "sft", "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
TOKENS_IN = {"token_ids": [1, 10, 11], "sampling_params": {"max_tokens": 1, "prompt_logprobs": 1}}


def complete(served: Running, **fields: Any) -> Any:
    return served.client.post("/v1/completions", json={**SCORING, **fields})


def generate(served: Running, sampling: dict[str, Any], **fields: Any) -> Any:
    body = {**TOKENS_IN, **fields, "sampling_params": {**TOKENS_IN["sampling_params"], **sampling}}
    return served.client.post("/inference/v1/generate", json=body)


def test_an_echo_is_the_prompt_and_the_likeliest_next_token(served: Running) -> None:
    answer = complete(served, prompt="the sum").json()
    [choice] = answer["choices"]
    ids = served.tokenizer.encode("the sum")
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(ids) + 1 == len(logprobs["token_logprobs"])
    assert logprobs["token_logprobs"][0] is None is logprobs["top_logprobs"][0]
    assert all(value < 0 for value in logprobs["token_logprobs"][1:])
    assert logprobs["tokens"][:-1] == served.tokenizer.token_strings(ids)
    assert logprobs["text_offset"][:2] == [0, len("<|begin|>")]
    assert choice["text"].startswith("the sum")
    assert answer["usage"] == {
        "prompt_tokens": len(ids),
        "total_tokens": len(ids) + 1,
        "completion_tokens": 1,
    }
    assert (answer["object"], answer["model"]) == ("text_completion", "sft")
    assert answer["system_fingerprint"] == served.pair.version


def test_max_tokens_0_echoes_the_prompt_alone(served: Running) -> None:
    [choice] = complete(served, prompt=[1, 10, 11], max_tokens=0).json()["choices"]
    assert len(choice["logprobs"]["tokens"]) == 3
    assert (choice["finish_reason"], len(choice["prompt_logprobs"])) == ("length", 3)
    [alone] = complete(served, prompt=[5], max_tokens=0).json()["choices"]
    assert alone["logprobs"]["token_logprobs"] == [None]


def test_a_next_token_that_ends_stops(served: Running) -> None:
    # The fake engine finds the last token of the prompt the likeliest to follow.
    [choice] = complete(served, prompt=[1, 10, 2], return_token_ids=True).json()["choices"]
    assert (choice["finish_reason"], choice["token_ids"]) == ("stop", [2])
    assert choice["prompt_token_ids"] == [1, 10, 2]
    assert choice["text"] == served.tokenizer.decode([1, 10, 2]), "an EOS token is no text"


def test_prompt_logprobs_are_vllms(served: Running) -> None:
    fields = {"echo": False, "logprobs": None, "prompt_logprobs": 3}
    first, second = complete(served, prompt=[[1, 10, 11], [1, 12]], **fields).json()["choices"]
    assert (first["logprobs"], first["index"], second["index"]) == (None, 0, 1)
    assert first["prompt_logprobs"][0] is None
    entries = first["prompt_logprobs"][1]
    assert list(entries) == ["10", "9", "8"], "the token itself stands first, once"
    assert [entry["rank"] for entry in entries.values()] == [1, 2, 3]
    assert entries["10"]["decoded_token"] == served.tokenizer.decode([10])
    own = complete(served, prompt=[1, 10, 11], **fields | {"prompt_logprobs": 0}).json()["choices"][0]
    assert [list(entry) for entry in own["prompt_logprobs"][1:]] == [["10"], ["11"]]


def test_a_padded_id_is_scored_and_has_no_text(served: Running) -> None:
    [choice] = complete(served, prompt=[1, 10, 319], logprobs=4).json()["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"] == served.tokenizer.decode([1, 10])
    assert logprobs["tokens"][2] == ""
    # The likeliest are 319, 318, 317 and 316, a nat apart: of those without a text the last stands.
    assert logprobs["top_logprobs"][2] == {"": pytest.approx(logprobs["token_logprobs"][2] - 3)}
    assert choice["prompt_logprobs"][2]["319"]["decoded_token"] == ""
    assert set(choice["prompt_logprobs"][2]) == {"319", "318", "317", "316"}
    answer = generate(served, {"logprobs": 1}, token_ids=[1, 10, 319]).json()
    assert next(iter(answer["prompt_logprobs"][2])) == "319"


def test_tokens_as_ids(served: Running) -> None:
    fields = {"return_tokens_as_token_ids": True}
    [choice] = complete(served, prompt=[1, 10], **fields).json()["choices"]
    assert choice["logprobs"]["tokens"] == ["token_id:1", "token_id:10", "token_id:10"]
    assert list(choice["logprobs"]["top_logprobs"][1]) == ["token_id:10"]


def test_the_token_in_route(served: Running) -> None:
    answer = generate(served, {"logprobs": 2}, request_id="a", return_token_ids=True).json()
    assert (answer["request_id"], answer["model"], answer["output_mode"]) == ("a", "sft", "tokens")
    assert answer["prompt_logprobs"][0] is None
    assert [next(iter(entries)) for entries in answer["prompt_logprobs"][1:]] == ["10", "11"]
    assert answer["prompt_token_ids"] == [1, 10, 11]
    [choice] = answer["choices"]
    assert (choice["finish_reason"], choice["token_ids"]) == ("length", [11])
    [content] = choice["logprobs"]["content"]
    assert [entry["token_id"] for entry in content["top_logprobs"]] == [11, 10]
    [none] = generate(served, {"max_tokens": 0}).json()["choices"]
    assert (none["token_ids"], none["logprobs"]) == ([], None)


@pytest.mark.parametrize("name", ["sft", "reference", "dpr-teacher"])
def test_a_model_goes_by_two_names(name: str, served: Running) -> None:
    both = [complete(served, prompt="a b", model=model).json() for model in (name, f"default/{name}")]
    assert both[0]["choices"] == both[1]["choices"]


def test_the_teacher_is_made_of_both(served: Running) -> None:
    lifecycle = served.service.lifecycle
    lifecycle.served = replace(lifecycle.served, teacher_kl=0.25)
    sft, reference, teacher = (
        complete(served, prompt=[1, 10, 11, 12], model=model).json()["choices"][0]["logprobs"][
            "token_logprobs"
        ][1:]
        for model in ("sft", "reference", "dpr-teacher")
    )
    for lp_sft, lp_reference, t in zip(sft, reference, teacher, strict=True):
        assert t == pytest.approx(5 * lp_sft - 4 * lp_reference, abs=1e-5)


REFUSED: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "generation": ({"max_tokens": 16}, 400, "invalid_request", "does not generate"),
    "generation by default": ({"max_tokens": None}, 400, "invalid_request", "does not generate"),
    "nothing to score": ({"echo": False}, 400, "invalid_request", "ask for echo with logprobs"),
    "several answers": ({"n": 2}, 400, "invalid_request", "send n 1"),
    "a stream": ({"stream": True}, 400, "invalid_request", "leave stream out"),
    "another temperature": ({"temperature": 0.7}, 400, "invalid_request", "must be 1, 0 or none"),
    "too many likeliest": ({"logprobs": 129}, 400, "invalid_request", "less than or equal to 128"),
    "an unknown field": ({"c4n4ry": 1}, 400, "invalid_request", "does not have"),
    "an empty prompt": ({"prompt": []}, 400, "invalid_item", "prompt 0 is empty"),
    "an empty text": ({"prompt": "", "add_special_tokens": False}, 400, "invalid_item", "prompt 0 is empty"),
    "half a token": ({"prompt": [1, 2.5]}, 400, "invalid_request", "a list of token ids"),
    "an id out of range": ({"prompt": [1, 320]}, 400, "invalid_item", "from 0 to 319"),
    "an id below 0": ({"prompt": [1, -1]}, 400, "invalid_item", "from 0 to 319"),
    "an id beyond 64 bits": ({"prompt": [1, 10**30]}, 400, "invalid_item", "64 bits"),
    "too many prompts": ({"prompt": ["a"] * 9}, 400, "invalid_item", "holds 1 to 8"),
    "too long": ({"prompt": [1] * CONTEXT_LENGTH}, 400, "context_length_exceeded", "65 tokens"),
    "another model": ({"model": "c4n4ry"}, 404, "model_not_found", "`sft`"),
    "the pair's own name": ({"model": "default"}, 404, "model_not_found", "`dpr-teacher`"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_in_openais_words(name: str, served: Running) -> None:
    fields, status, code, words = REFUSED[name]
    answer = complete(served, **{"prompt": "the sum", **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert words in error["message"]
    assert "c4n4ry" not in answer.text


@pytest.mark.parametrize(
    ("sampling", "fields", "status", "kind", "words"),
    [
        ({"max_tokens": 2}, {}, 400, "BadRequestError", "does not generate"),
        ({"prompt_logprobs": None}, {}, 400, "BadRequestError", "ask for prompt_logprobs"),
        ({}, {"token_ids": []}, 400, "BadRequestError", "token_ids"),
        ({}, {"token_ids": [-1]}, 400, "BadRequestError", "out of range"),
        ({}, {"model": "other"}, 404, "NotFoundError", "`sft`"),
        ({}, {"stream": True}, 400, "BadRequestError", "leave stream out"),
    ],
)
def test_the_token_in_route_refuses_in_vllms_words(
    sampling: dict[str, Any], fields: dict[str, Any], status: int, kind: str, words: str, served: Running
) -> None:
    answer = generate(served, sampling, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (status, status, kind)
    assert words in error["message"]


def test_the_context_may_be_filled(served: Running) -> None:
    full = complete(served, prompt=[1] * (CONTEXT_LENGTH - 1))
    assert full.status_code == 200
    assert complete(served, prompt=[1] * CONTEXT_LENGTH, max_tokens=0).status_code == 200


def test_a_score_that_is_no_number_is_an_error(served: Running) -> None:
    scorer = served.service.lifecycle.served.scorer
    assert isinstance(scorer, FakeScorer)
    scorer.non_finite_after_id = 42
    try:
        answer = complete(served, prompt=[[1, 2], [1, 42]], max_tokens=0)
    finally:
        scorer.non_finite_after_id = None
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "non_finite_score")
    assert "prompt 1" in answer.json()["error"]["message"]
    served.idle()
