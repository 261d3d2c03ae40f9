"""SGLang's route: its answer field for field, its refusals in its words, its numbers those of /v1/rewards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.running import CONTEXT_LENGTH, Running, make_service, running
from densepath.engine.transformers import TransformersScorer
from densepath.pair.pair import Pair

EOS = 2
SCORING = {"return_logprob": True, "logprob_start_len": 0, "sampling_params": {"max_new_tokens": 0}}
#: What slime's on-policy distillation sends, beside its token ids.
SLIME = {
    "sampling_params": {"temperature": 0.8, "max_new_tokens": 0, "skip_special_tokens": False},
    "return_logprob": True,
    "logprob_start_len": 0,
}
META = {
    "id", "finish_reason", "prompt_tokens", "weight_version", "num_retractions", "reasoning_tokens",
    "completion_tokens", "cached_tokens", "e2e_latency", "response_sent_to_client_ts",
}  # fmt: skip
LISTS = {"input_token_logprobs", "output_token_logprobs", "output_token_logprobs_length"}


@pytest.fixture(scope="module")
def real(pair: Pair, pair_dirs: tuple[Path, Path]) -> Iterator[Running]:
    """The service over the oracle: its numbers are a function of the ids alone."""
    with running(make_service(pair, scorer=TransformersScorer(*pair_dirs, context_length=1024))) as service:
        yield service


def post(served: Running, url: str = "/generate", **fields: Any) -> httpx.Response:
    return served.client.post(url, json={**SCORING, **fields})


def generate(served: Running, url: str = "/generate", **fields: Any) -> Any:
    answer = post(served, url, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def logps(answer: Any) -> list[float | None]:
    return [entry[0] for entry in answer["meta_info"]["input_token_logprobs"]]


def test_a_score_is_sglangs(served: Running) -> None:
    answer = generate(served, input_ids=[1, 10, 11, 12], rid="a", **SLIME)
    assert answer.keys() == {"text", "output_ids", "meta_info"}
    assert (answer["text"], answer["output_ids"]) == ("", [])
    meta = answer["meta_info"]
    assert meta.keys() == META | LISTS
    assert meta["id"] == "a"
    assert meta["finish_reason"] == {"type": "length", "length": 0}
    assert (meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"]) == (4, 0, 0)
    assert meta["weight_version"] == served.pair.version
    assert meta["input_token_logprobs"][0] == [None, 1, None]
    assert [entry[1:] for entry in meta["input_token_logprobs"]] == [[i, None] for i in (1, 10, 11, 12)]
    assert all(entry[0] < 0 for entry in meta["input_token_logprobs"][1:])
    plain = generate(served, input_ids=[1, 10, 11, 12])["meta_info"]["input_token_logprobs"]
    assert plain == meta["input_token_logprobs"], "a temperature is of no effect, as in SGLang"
    assert (meta["output_token_logprobs"], meta["output_token_logprobs_length"]) == ([], 0)


def test_the_list_begins_where_it_is_asked_to(served: Running) -> None:
    ids = [1, 10, 11, 12]
    whole = generate(served, input_ids=ids)["meta_info"]["input_token_logprobs"]
    later = generate(served, input_ids=ids, logprob_start_len=2)["meta_info"]["input_token_logprobs"]
    assert later == [[None, 11, None], whole[3]], "the first has no number, as in SGLang"
    assert generate(served, input_ids=ids, logprob_start_len=3)["meta_info"]["input_token_logprobs"] == [
        [None, 12, None]
    ]
    for start in (4, -1, None):
        assert (
            generate(served, input_ids=ids, logprob_start_len=start)["meta_info"]["input_token_logprobs"]
            == []
        )


def test_without_log_probabilities_it_counts(served: Running) -> None:
    meta = generate(served, text="the sum", return_logprob=False)["meta_info"]
    assert meta.keys() == META
    assert meta["prompt_tokens"] == len(served.tokenizer.encode("the sum"))


def test_the_likeliest_next_token(served: Running) -> None:
    one = {"sampling_params": {"max_new_tokens": 1, "temperature": 0}, "top_logprobs_num": 2}
    answer = generate(served, input_ids=[1, 10, 11], **one)
    # The fake engine finds the last token of the prompt the likeliest to follow.
    assert answer["output_ids"] == [11]
    assert answer["text"] == served.tokenizer.decode([11])
    meta = answer["meta_info"]
    assert meta["finish_reason"] == {"type": "length", "length": 1}
    assert (meta["completion_tokens"], meta["output_token_logprobs_length"]) == (1, 1)
    assert [entry[1] for entry in meta["output_token_logprobs"]] == [11]
    assert [[entry[1] for entry in row] for row in meta["output_top_logprobs"]] == [[11, 10]]
    assert meta["input_top_logprobs"][0] is None
    assert [[entry[1] for entry in row] for row in meta["input_top_logprobs"][1:]] == [[10, 9], [11, 10]]
    behind = generate(served, input_ids=[1, 10, 11], **one, logprob_start_len=-1)["meta_info"]
    assert (behind["input_token_logprobs"], behind["input_top_logprobs"]) == ([], [])
    assert behind["output_token_logprobs"] == meta["output_token_logprobs"]


def test_an_eos_token_stops(served: Running) -> None:
    one = {"max_new_tokens": 1}
    answer = generate(served, input_ids=[1, 10, EOS], sampling_params=one)
    assert (answer["output_ids"], answer["text"]) == ([EOS], "")
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": EOS}
    on = generate(served, input_ids=[1, 10, EOS], sampling_params={**one, "ignore_eos": True})
    assert on["meta_info"]["finish_reason"] == {"type": "length", "length": 1}
    shown = {**one, "no_stop_trim": True, "skip_special_tokens": False}
    assert generate(served, input_ids=[1, 10, EOS], sampling_params=shown)["text"] == "<|end|>"


def test_a_batch_is_a_list(served: Running) -> None:
    first, second = generate(
        served,
        text=["the sum", "a b"],
        rid="a",
        logprob_start_len=[0, 1],
        return_logprob=[True, True],
        top_logprobs_num=[0, 1],
        return_text_in_logprobs=True,
        return_prompt_token_ids=True,
    )
    tokenizer = served.tokenizer
    assert (first["meta_info"]["id"], second["meta_info"]["id"]) == ("a_0", "a_1")
    assert first["prompt_token_ids"] == tokenizer.encode("the sum")
    texts = [entry[2] for entry in first["meta_info"]["input_token_logprobs"]]
    assert texts == tokenizer.token_strings(first["prompt_token_ids"])
    assert "input_top_logprobs" not in first["meta_info"]
    assert len(second["meta_info"]["input_token_logprobs"]) == len(tokenizer.encode("a b")) - 1
    [row] = second["meta_info"]["input_top_logprobs"][1:2]
    assert row[0][2] == tokenizer.decode([row[0][1]])
    [alone] = generate(served, input_ids=[[1, 10]])
    assert len(alone["meta_info"]["id"]) == 32


def test_nulls_are_what_sglang_makes_of_them(served: Running) -> None:
    fields = (
        "rid",
        "top_logprobs_num",
        "image_data",
        "lora_path",
        "session_id",
        "stream",
        "token_ids_logprob",
    )
    nulls = dict.fromkeys(fields)
    answer = generate(served, text="a b", **nulls, sampling_params={"max_new_tokens": 0, "regex": None})
    assert logps(answer) == logps(generate(served, text="a b"))


@pytest.mark.parametrize("name", ["sft", "reference", "dpr-teacher", "default/dpr-teacher"])
def test_a_model_by_the_body_or_by_the_url(name: str, served: Running) -> None:
    by_body = logps(generate(served, input_ids=[1, 10, 11], model=name))
    assert logps(generate(served, f"/generate?model={name}", input_ids=[1, 10, 11])) == by_body
    assert logps(generate(served, "/generate?model=other", input_ids=[1, 10, 11], model=name)) == by_body
    sft = logps(generate(served, input_ids=[1, 10, 11]))
    assert (sft == by_body) == (name == "sft")


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "generation": ({"sampling_params": {"max_new_tokens": 2}}, 400, "does not generate"),
    "generation by default": ({"sampling_params": None}, 400, "does not generate"),
    "generation without end": ({"sampling_params": {"max_new_tokens": None}}, 400, "does not generate"),
    "several answers": ({"sampling_params": {"max_new_tokens": 0, "n": 2}}, 400, "send n 1"),
    "a stream": ({"stream": True}, 400, "leave stream out"),
    "another temperature": (
        {"sampling_params": {"max_new_tokens": 1, "temperature": 0.7}}, 400, "send temperature 0 or 1",
    ),
    "a temperature below 0": (
        {"sampling_params": {"max_new_tokens": 0, "temperature": -1}}, 400, "temperature",
    ),
    "a grammar": ({"sampling_params": {"max_new_tokens": 1, "regex": "a*"}}, 400, "sampling_params"),
    "an image": ({"image_data": "a.png"}, 400, "image_data"),
    "chosen tokens": ({"token_ids_logprob": [5]}, 400, "token_ids_logprob"),
    "an adapter": ({"lora_path": "a"}, 400, "lora_path"),
    "an unknown field": ({"c4n4ry": 1}, 400, "does not have"),
    "too many likeliest": ({"top_logprobs_num": 129}, 400, "less than or equal to 128"),
    "no prompt": ({"input_ids": None}, 400, "either text or input_ids"),
    "two prompts": ({"text": "a"}, 400, "either text or input_ids"),
    "an empty prompt": ({"input_ids": []}, 400, "prompt 0 is empty"),
    "an empty prompt of a batch": ({"input_ids": [[1], []]}, 400, "prompt 1 is empty"),
    "no prompts": ({"input_ids": None, "text": []}, 400, "holds 1 to 8"),
    "too many prompts": ({"input_ids": [[1]] * 9}, 400, "holds 1 to 8"),
    "half a token": ({"input_ids": [1, 2.5]}, 400, "a list of token ids"),
    "an id out of range": ({"input_ids": [1, 320]}, 400, "from 0 to 319"),
    "an id beyond 64 bits": ({"input_ids": [1, 10**30]}, 400, "64 bits"),
    "too long": ({"input_ids": [1] * (CONTEXT_LENGTH + 1)}, 400, "65 tokens"),
    "a start behind the end": ({"logprob_start_len": 4}, 400, "logprob_start_len is 4"),
    "a start below -1": ({"logprob_start_len": -2}, 400, "logprob_start_len"),
    "starts for others": ({"logprob_start_len": [0, 0]}, 400, "2 entries for 1 prompts"),
    "another model": ({"model": "c4n4ry"}, 404, "`dpr-teacher`"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_in_sglangs_words(name: str, served: Running) -> None:
    fields, status, words = REFUSED[name]
    answer = post(served, **{"input_ids": [1, 10, 11], **fields})
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message"}
    assert words in answer.json()["error"]["message"]
    assert "c4n4ry" not in answer.text


def test_a_score_that_is_no_number_is_an_error(served: Running) -> None:
    served.scorer.non_finite_after_id = 42
    try:
        answer = post(served, input_ids=[[1, 2], [1, 42]])
    finally:
        served.scorer.non_finite_after_id = None
    assert answer.status_code == 500
    assert "not finite" in answer.json()["error"]["message"]
    served.idle()


def test_model_info_names_no_path(served: Running) -> None:
    info = served.client.get("/get_model_info").json()
    assert info == served.client.get("/model_info").json()
    assert (info["model_path"], info["is_generation"]) == ("default", True)
    assert info["weight_version"] == served.pair.version


def test_its_numbers_are_those_of_the_rewards(real: Running) -> None:
    prompt, response = [1, 40, 41, 42], [50, 51, 52, 53, EOS]
    item = {"prompt_token_ids": prompt, "response_token_ids": response}
    [scored] = real.score(item, include=["logprobs"]).json()["items"]
    ids = [*prompt, *response]
    found = {
        name: logps(generate(real, f"/generate?model={name}", input_ids=ids, **SLIME))[len(prompt) :]
        for name in ("sft", "reference", "dpr-teacher")
    }
    assert found["sft"] == pytest.approx(scored["sft_logprobs"], abs=1e-5)
    assert found["reference"] == pytest.approx(scored["reference_logprobs"], abs=1e-5)
    b = real.service.lifecycle.served.teacher_kl
    reward_T = [b * (t - sft) for t, sft in zip(found["dpr-teacher"], found["sft"], strict=True)]
    assert reward_T == pytest.approx(scored["rewards"], abs=1e-5)
    later = logps(generate(real, input_ids=ids, logprob_start_len=len(prompt) - 1))
    assert later[1:] == pytest.approx(scored["sft_logprobs"], abs=1e-5)
