"""OpenAI's own client, unmodified, against the demo pair in the real engine."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import openai
import pytest
from transformers import AutoTokenizer

from densepath import Client, Score
from densepath.demo.task import held_out
from live import Demo

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

TOLERANCE = 1e-5  # a prompt that is scored whole is another batch than one whose response is


@pytest.fixture(scope="module")
def client(demo: Demo) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def items(demo: Demo) -> list[dict[str, Any]]:
    """Held-out prompts and right responses of the demo's task, as token ids."""
    tokenizer = AutoTokenizer.from_pretrained(demo.sft)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return [
        {
            "prompt_token_ids": ids(
                tokenizer.apply_chat_template(
                    list(example.messages), add_generation_prompt=True, tokenize=False
                )
            ),
            "response_token_ids": [*ids(example.response), tokenizer.eos_token_id],
        }
        for example in held_out(6, random.Random(1))
    ]


@pytest.fixture(scope="module")
def rewards(demo: Demo, items: list[dict[str, Any]]) -> list[Score]:
    with Client(demo.url) as densepath:
        return list(densepath.score(items, include=("logprobs",)))


def whole(item: dict[str, Any]) -> list[int]:
    return [*item["prompt_token_ids"], *item["response_token_ids"]]


def test_completions_score_as_the_rewards_do(
    client: openai.OpenAI,
    items: list[dict[str, Any]],
    rewards: list[Score],
    say_difference: Callable[[str, float], None],
) -> None:
    logps: dict[str, list[np.ndarray]] = {}
    for model in ("sft", "reference"):
        answer = client.completions.create(
            model=model, prompt=[whole(item) for item in items], max_tokens=0, echo=True, logprobs=0
        )
        logps[model] = [
            np.array(choice.logprobs.token_logprobs[len(item["prompt_token_ids"]) :])
            for choice, item in zip(answer.choices, items, strict=True)
        ]
    difference = 0.0
    for sft_T, reference_T, score in zip(logps["sft"], logps["reference"], rewards, strict=True):
        difference = max(difference, np.abs(sft_T - score.logp_sft_T).max())
        difference = max(difference, np.abs(reference_T - score.logp_reference_T).max())
        difference = max(difference, np.abs(sft_T - reference_T - score.reward_T).max())
    say_difference("openai's client: completions against /v1/rewards", difference)
    assert difference <= TOLERANCE


def test_the_teacher_holds_the_reward(
    client: openai.OpenAI, items: list[dict[str, Any]], rewards: list[Score]
) -> None:
    """b (t - log p_sft) is the reward: what an unmodified distillation client trains on."""
    item, score = items[0], rewards[0]
    answer = client.completions.create(
        model="dpr-teacher", prompt=whole(item), max_tokens=1, echo=True, logprobs=0, temperature=0
    )
    start = len(item["prompt_token_ids"])
    teacher_T = np.array(answer.choices[0].logprobs.token_logprobs[start:-1])
    np.testing.assert_allclose(0.5 * (teacher_T - score.logp_sft_T), score.reward_T, atol=TOLERANCE)


def test_the_likeliest_next_token_is_the_models(client: openai.OpenAI, demo: Demo) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo.sft)
    messages = [{"role": "user", "content": "upper: planet"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    choice = client.completions.create(
        model="sft", prompt=prompt, max_tokens=1, echo=True, logprobs=2, temperature=0,
        extra_body={"add_special_tokens": False},
    ).choices[0]  # fmt: skip
    assert choice.text.startswith(prompt)
    following = choice.logprobs.tokens[-1]
    assert choice.text == prompt + following
    top = choice.logprobs.top_logprobs[-1]
    assert len(top) == 2
    assert top[following] == max(top.values()) == choice.logprobs.token_logprobs[-1]


def test_models_and_errors_are_openais(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["default", "sft", "reference", "dpr-teacher"]
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt", prompt="a", max_tokens=0, echo=True, logprobs=0)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="does not generate"):
        client.completions.create(model="sft", prompt="a", max_tokens=5)
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="sft", prompt=[5] * 100_000, max_tokens=0, echo=True, logprobs=0)
    assert long.value.code == "context_length_exceeded"
