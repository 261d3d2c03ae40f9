"""lm-evaluation-harness over /v1/completions against its own local `hf` backend, both unmodified."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalCompletionsAPI
from transformers import AutoTokenizer

from densepath.demo.task import held_out
from live import Demo

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=each, idx=i) for i, each in enumerate(arguments)]


@pytest.fixture(scope="module")
def backends(demo: Demo) -> tuple[LocalCompletionsAPI, HFLM]:
    common = {"batch_size": 4, "add_bos_token": False}  # the template writes the BOS itself
    served = LocalCompletionsAPI(
        base_url=f"{demo.url}/v1/completions",
        model="sft",
        tokenizer=str(demo.sft),
        tokenizer_backend="huggingface",
        **common,
    )
    return served, HFLM(pretrained=str(demo.sft), dtype="float32", device="cpu", **common)


def test_loglikelihoods_are_those_of_the_hf_backend(
    demo: Demo, backends: tuple[LocalCompletionsAPI, HFLM], say_difference: Callable[[str, float], None]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo.sft)
    pairs = [
        (
            tokenizer.apply_chat_template(list(example.messages), add_generation_prompt=True, tokenize=False),
            response,
        )
        for example in held_out(12, random.Random(2))
        for response in (example.response, example.response[::-1], "x")
    ]
    served, local = (
        backend.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True) for backend in backends
    )
    difference = max(abs(a[0] - b[0]) for a, b in zip(served, local, strict=True))
    say_difference("lm-evaluation-harness: loglikelihood against its hf backend", difference)
    assert difference <= 1e-4  # a sum of a response's tokens
    assert [greedy for _, greedy in served] == [greedy for _, greedy in local]
    assert {greedy for _, greedy in local} == {True, False}


def test_rolling_loglikelihoods_too(backends: tuple[LocalCompletionsAPI, HFLM]) -> None:
    texts = [("reverse: planet is tenalp",), ("the sum",)]
    served, local = (
        backend.loglikelihood_rolling(requests("loglikelihood_rolling", *texts), disable_tqdm=True)
        for backend in backends
    )
    assert served == pytest.approx(local, abs=1e-4)
