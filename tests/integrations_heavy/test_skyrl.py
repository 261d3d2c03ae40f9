"""SkyRL's released client, unmodified: a teacher through /inference/v1/generate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from densepath import Client
from integrations_heavy.bare import bare_package
from integrations_heavy.served import TEACHER_KL

bare_package("skyrl.backends")

import aiohttp  # noqa: E402  # SkyRL's, where it is installed
from skyrl.backends.skyrl_train.inference_servers.remote_inference_client import (  # noqa: E402
    RemoteInferenceClient,
)

# SkyRL compares its session's loop by a property that aiohttp has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:client.loop:DeprecationWarning")

PROMPT, RESPONSE = [1, 40, 41, 42], [50, 51, 52, 53, 2]


def sample(service: str, model: str, **fields: Any) -> Any:
    """One scoring request, as SkyRL's own on-policy distillation makes it."""
    body = {
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [*PROMPT, *RESPONSE]}]},
        "num_samples": 1,
        "sampling_params": {"max_tokens": 1, "temperature": 1.0},
        "include_prompt_logprobs": True,
        **fields,
    }

    async def ask() -> Any:
        client = RemoteInferenceClient(
            proxy_url=service, server_urls=[service], data_parallel_size=1, model_name=model
        )
        async with client:
            return await client.sample({"json": body})

    return asyncio.run(ask())


def test_prompt_logprobs_are_those_of_the_rewards(
    service: str, say_difference: Callable[[str, float], None]
) -> None:
    with Client(service) as densepath:
        item = {"prompt_token_ids": PROMPT, "response_token_ids": RESPONSE}
        [score] = densepath.score([item], include=("logprobs",))
    found = {}
    for model in ("sft", "reference", "dpr-teacher"):
        answer = sample(service, model, topk_prompt_logprobs=2)
        assert answer["prompt_logprobs"][0] is None is answer["topk_prompt_logprobs"][0]
        assert all(len(top) == 2 for top in answer["topk_prompt_logprobs"][1:])
        [sequence] = answer["sequences"]
        assert len(sequence["tokens"]) == 1 == len(sequence["logprobs"])
        found[model] = np.array(answer["prompt_logprobs"][len(PROMPT) :])
    reward_T = TEACHER_KL * (found["dpr-teacher"] - found["sft"])
    difference = max(
        np.abs(found["sft"] - score.logp_sft_T).max(),
        np.abs(found["reference"] - score.logp_reference_T).max(),
        np.abs(reward_T - score.reward_T).max(),
    )
    say_difference("SkyRL's client: prompt_logprobs against /v1/rewards", difference)
    assert difference <= 1e-5


def test_text_is_tokenised_by_the_pair(service: str) -> None:
    async def both() -> tuple[list[list[int]], list[str]]:
        async with RemoteInferenceClient(
            proxy_url=service, server_urls=[service], data_parallel_size=1, model_name="dpr-teacher"
        ) as client:
            ids = await client.tokenize(["the sum"], add_special_tokens=False)
            return ids, await client.detokenize(ids)

    ids, texts = asyncio.run(both())
    assert texts == ["the sum"]
    assert ids[0]


def test_generation_is_refused_in_words(service: str) -> None:
    with pytest.raises(aiohttp.ClientResponseError, match="does not generate") as refused:
        sample(service, "sft", sampling_params={"max_tokens": 64, "temperature": 1.0})
    assert refused.value.status == 400
