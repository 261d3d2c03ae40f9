"""The OpenAPI document is valid, whole, and true of real requests and answers."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate

from api.bad_requests import BAD_REQUESTS
from api.bodies import CHAT, GOOD, REWARDS, SPANS, TEXT
from api.running import Running

CONTRACT = {
    ("post", "/v1/rewards"),
    ("get", "/livez"),
    ("get", "/readyz"),
    ("get", "/health"),
    ("get", "/metrics"),
    ("get", "/version"),
    ("get", "/v1/pair"),
    ("get", "/v1/models"),
    ("post", "/tokenize"),
    ("post", "/detokenize"),
    ("post", "/v1/completions"),
    ("post", "/inference/v1/generate"),
    ("post", "/generate"),
    ("get", "/model_info"),
    ("get", "/get_model_info"),
    ("post", "/get_reward"),
    ("put", "/admin/pair"),
    ("post", "/admin/selftest"),
}
EVERYTHING = {
    "model": "default",
    "include": ["logprobs", "returns", "tokens"],
    "gamma": 0.5,
    "on_error": "item",
}


@pytest.fixture(scope="module")
def document(served: Running) -> dict[str, Any]:
    answer = served.client.get("/openapi.json")
    assert answer.status_code == 200
    return dict(answer.json())


def check(value: Any, schema: dict[str, Any], document: dict[str, Any]) -> None:
    whole = {**schema, "components": document["components"]}
    jsonschema.validate(value, whole, jsonschema.Draft202012Validator)


def request_schema(document: dict[str, Any], path: str) -> dict[str, Any]:
    return dict(document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"])


def answer_schema(document: dict[str, Any], method: str, path: str, status: str) -> dict[str, Any]:
    content = document["paths"][path][method]["responses"][status]["content"]
    return dict(content["application/json"]["schema"])


def test_the_document_is_valid_and_whole(document: dict[str, Any]) -> None:
    validate(document)
    assert {(method, path) for path, item in document["paths"].items() for method in item} == CONTRACT
    rewards = document["paths"][REWARDS]["post"]
    kinds = {"application/json", "application/x-safetensors"}
    assert rewards["requestBody"]["content"].keys() == kinds
    assert rewards["responses"]["200"]["content"].keys() == kinds
    for path, item in document["paths"].items():
        for operation in item.values():
            assert operation["responses"].keys() == {"200", "default"}, path
            assert operation["description"]


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/health", "/version", "/v1/pair", "/v1/models", "/model_info"]
)
def test_a_get_answers_as_it_says(path: str, document: dict[str, Any], served: Running) -> None:
    check(served.client.get(path).json(), answer_schema(document, "get", path, "200"), document)


@pytest.mark.parametrize(
    ("path", "request_body"),
    [
        (REWARDS, {"items": [GOOD, SPANS, TEXT, CHAT]}),
        (REWARDS, {"items": [{**item, "id": "a"} for item in (GOOD, SPANS, TEXT, CHAT)], **EVERYTHING}),
        (REWARDS, {"items": [{**TEXT, "append_eos": True}, {**CHAT, "append_eos": False}], "gamma": 1}),
        ("/tokenize", {"prompt": "the sum", "return_token_strs": True, "add_special_tokens": False}),
        ("/tokenize", {"messages": CHAT["messages"], "add_generation_prompt": False}),
        ("/detokenize", {"tokens": [5, 6], "model": "default"}),
        ("/v1/completions", {"model": "sft", "prompt": "a b", "max_tokens": 1, "echo": True, "logprobs": 2}),
        ("/v1/completions", {"model": "sft", "prompt": [[1, 5]], "max_tokens": 0, "prompt_logprobs": 2}),
        (
            "/inference/v1/generate",
            {"token_ids": [1, 5], "sampling_params": {"max_tokens": 1, "prompt_logprobs": 2, "logprobs": 1}},
        ),
        (
            "/generate",
            {
                "text": ["a b", "the sum"],
                "sampling_params": {"max_new_tokens": 1, "temperature": 0},
                "return_logprob": True,
                "logprob_start_len": [0, 1],
                "top_logprobs_num": 2,
                "return_text_in_logprobs": True,
            },
        ),
        ("/generate", {"input_ids": [1, 5], "sampling_params": {"max_new_tokens": 0}}),
        ("/get_reward", {"query": ["a b the sum"], "prompts": ["a b"], "labels": [""]}),
    ],
)
def test_a_post_is_taken_and_answered_as_it_says(
    path: str, request_body: Any, document: dict[str, Any], served: Running
) -> None:
    check(request_body, request_schema(document, path), document)
    answer = served.client.post(path, json=request_body)
    assert answer.status_code == 200
    check(answer.json(), answer_schema(document, "post", path, "200"), document)


def test_an_answer_with_failed_items_is_as_it_says(document: dict[str, Any], served: Running) -> None:
    answer = served.score(GOOD, {}, {**TEXT, "prompt": ""}, on_error="item").json()
    check(answer, answer_schema(document, "post", REWARDS, "200"), document)
    del answer["items"][1]["error"]
    with pytest.raises(jsonschema.ValidationError):
        check(answer, answer_schema(document, "post", REWARDS, "200"), document)


@pytest.mark.parametrize("name", ["not JSON", "no content type", "field: gamma over 1", "another model"])
def test_an_error_is_as_it_says(name: str, document: dict[str, Any], served: Running) -> None:
    [bad] = [bad for bad in BAD_REQUESTS if bad.name == name]
    headers = {"Content-Type": bad.content_type} if bad.content_type else {}
    answer = served.client.post(bad.path, content=bad.content, headers=headers)
    assert answer.status_code == bad.status
    check(answer.json(), answer_schema(document, "post", bad.path, "default"), document)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"items": []},
        {"items": [{}]},
        {"items": [{**GOOD, "token_ids": [1]}]},
        {"items": [{**GOOD, "prompt_token_ids": [2.5]}]},
        {"items": [{**GOOD, "prompt_token_ids": [True]}]},
        {"items": [{**GOOD, "prompt_token_ids": ["3"]}]},
        {"items": [{**TEXT, "append_eos": 1}]},
        {"items": [{**CHAT, "messages": [{"content": "a"}]}]},
        {"items": [TEXT], "gamma": 2},
        {"items": [TEXT], "include": ["everything"]},
        {"items": [TEXT], "on_error": "skip"},
        {"items": [TEXT], "temperature": 1},
    ],
    ids=str,
)
def test_a_bad_request_is_not_what_it_says(bad: Any, document: dict[str, Any], served: Running) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check(bad, request_schema(document, REWARDS), document)
    assert served.client.post(REWARDS, json=bad).status_code == 422
