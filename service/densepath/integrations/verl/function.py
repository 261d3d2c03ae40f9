"""The sum of a response's dense rewards, as a custom reward function of verl."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

from densepath.client import AsyncClient
from densepath.errors import InvalidItemError


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any],
    *,
    url: str,
    **others: Any,
) -> dict[str, float]:
    """The sum in nats, which verl puts on the response's last token.

    verl gives a reward function the text without special tokens, and no prompt. So the response is tokenised
    again, its end-of-sequence token is not scored, and the prompt comes from `extra_info["messages"]`, which
    the dataset must have. `DenseRewardManager` has none of these limits.

    Args:
        data_source: not used.
        solution_str: the response.
        ground_truth: not used.
        extra_info: of the dataset, with `messages`, the chat before the response.
        url: of the service; `reward.custom_reward_function.reward_kwargs.url`.
        others: not used.

    Raises:
        InvalidItemError: there are no messages, or the response contains the output of tools.
        DensepathError: the response has no score.
    """
    if extra_info.get("messages") is None:
        raise InvalidItemError(
            "extra_info of this prompt has no messages: the dataset must put its chat there"
        )
    if (extra_info.get("num_turns") or 0) > 2:
        raise InvalidItemError("a response of several turns has text that the policy did not choose")
    messages = [dict(message) for message in extra_info["messages"]]
    async with AsyncClient(url, api_key=os.environ.get("DENSEPATH_API_KEY")) as client:
        [score] = await client.score([{"messages": messages, "response": solution_str}])
    return {"score": cast(float, score.sum)}  # a failed score has raised
