"""SGLang's released frontend and its RuntimeEndpoint, unmodified, against /generate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from densepath import Client
from integrations_heavy.bare import bare_package
from integrations_heavy.served import tokenizer

bare_package("sglang")

from sglang.lang import api as sgl  # noqa: E402
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint  # noqa: E402

PROMPT = "the sum of 3 and 4 is"
CHOICES = [" 7", " 8, or so", " a word"]


# SGLang hands urllib a `cafile`, of which Python 3.11 warns.
pytestmark = pytest.mark.filterwarnings("ignore:cafile:DeprecationWarning")


@pytest.fixture
def endpoint(service: str) -> RuntimeEndpoint:
    return RuntimeEndpoint(service)


def logps(service: str, texts: list[str]) -> list[np.ndarray[Any, Any]]:
    """log p_sft of every token but the first, by /v1/rewards."""
    ids = tokenizer()(texts)["input_ids"]
    items = [{"prompt_token_ids": each[:1], "response_token_ids": each[1:]} for each in ids]
    with Client(service) as densepath:
        return [score.logp_sft_T for score in densepath.score(items, include=("logprobs",))]


def test_select_finds_the_likeliest_choice(
    endpoint: RuntimeEndpoint, service: str, say_difference: Callable[[str, float], None]
) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += PROMPT
        s += sgl.select("answer", choices=CHOICES)

    state = program.run(backend=endpoint, use_thread=False)
    start = len(tokenizer()(PROMPT)["input_ids"]) - 2  # SGLang looks two tokens back
    expected = [logp_T[start:] for logp_T in logps(service, [PROMPT + choice for choice in CHOICES])]
    found = state.get_meta_info("answer")["input_token_logprobs"]
    difference = 0.0
    for entries, logp_T in zip(found, expected, strict=True):
        assert entries[0][0] is None
        difference = max(difference, np.abs(np.array([entry[0] for entry in entries[1:]]) - logp_T).max())
    say_difference("SGLang's select: input_token_logprobs against /v1/rewards", difference)
    assert difference <= 1e-5
    assert state["answer"] == CHOICES[int(np.argmax([logp_T.mean() for logp_T in expected]))]


def test_gen_names_the_likeliest_next_token(endpoint: RuntimeEndpoint, service: str) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += PROMPT
        s += sgl.gen(
            "next", max_tokens=1, temperature=0, return_logprob=True, logprob_start_len=0,
            top_logprobs_num=2, return_text_in_logprobs=True,
        )  # fmt: skip

    state = program.run(backend=endpoint, use_thread=False)
    meta = state.get_meta_info("next")
    [logp_T] = logps(service, [PROMPT])
    assert [entry[0] for entry in meta["input_token_logprobs"][1:]] == pytest.approx(
        logp_T.tolist(), abs=1e-5
    )
    [[logp, token_id, text]] = meta["output_token_logprobs"]
    assert meta["output_top_logprobs"][0][0] == [logp, token_id, text]
    assert text == tokenizer().decode([token_id])


def test_generation_is_refused_in_words(endpoint: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += PROMPT + sgl.gen("more", max_tokens=16)

    with pytest.raises(RuntimeError, match="does not generate"):
        program.run(backend=endpoint, use_thread=False)
