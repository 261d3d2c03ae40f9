"""The rewards of a response's tokens, in verl's reward loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from densepath.client import AsyncClient, Client
from densepath.integrations.alignment import check_policy
from densepath.integrations.verl.settings import check

#: Seconds for a response's rewards, retries included. This is enough for a restart of the service.
DEADLINE = 600.0


class DenseRewardManager(RewardManagerBase):  # type: ignore[misc]  # verl carries no types
    """A reward manager whose score of a response is a list: one reward, in nats, per token.

    The token ids that verl has are scored, and nothing is tokenised. All rewards come from the pair version
    that is served at the start. A failed score raises: verl logs the reason and drops the rollout.

    Raises:
        InvalidRequestError: a setting would sum or misplace rewards; the message says what to set.
        AlignmentError: the policy's tokenizer is not the pair's.
        DensepathError: the service cannot be reached.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any,
        reward_router_address: str | None = None,
        reward_model_tokenizer: Any = None,
    ) -> None:
        settings = check(config)
        super().__init__(config, tokenizer, compute_score)
        with Client(settings.url, api_key=settings.api_key) as client:
            pair = client.pair()
        check_policy(tokenizer, pair)
        self._model_version = str(pair["version"])
        self.client = AsyncClient(settings.url, api_key=settings.api_key)

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Score the one response of `data`.

        `reward_score` has one reward per token of the response. If `data` has a `response_mask`, tokens that
        the policy did not choose have 0.

        Raises:
            ValueError: there is not exactly one response.
            DensepathError: the response has no score.
        """
        if len(data) != 1:
            raise ValueError(f"run_single scores one response, and was given {len(data)}")
        prompt_ids, response_ids, mask = _ids(data)
        item = {
            "token_ids": torch.cat([prompt_ids, response_ids]),
            "response_mask": torch.cat([torch.zeros_like(prompt_ids), mask]),
        }
        [score] = await self.client.score([item], model_version=self._model_version, deadline=DEADLINE)
        reward_T = torch.zeros(len(response_ids))
        reward_T[mask.bool()] = torch.from_numpy(score.reward_T)  # a failed score has raised
        return {"reward_score": reward_T.tolist(), "reward_extra_info": {}}

    @classmethod
    def assemble_rm_scores(cls, data: DataProto, scores: list[list[float]]) -> Tensor:
        """`rm_scores`, float32 [B, T]: reward t on token t, and 0 after the last token."""
        rm_scores = torch.zeros_like(data.batch["responses"], dtype=torch.float32)
        for row, reward_T in zip(rm_scores, scores, strict=True):
            row[: len(reward_T)] = torch.tensor(reward_T)
        return rm_scores


def _ids(data: DataProto) -> tuple[Tensor, Tensor, Tensor]:
    """The ids of the prompt and of the response, and the mask of scored tokens: int64, without padding."""
    batch = data.batch
    prompt, response, attention = (batch[name][0] for name in ("prompts", "responses", "attention_mask"))
    is_prompt, is_response = attention.bool().split([len(prompt), len(response)])
    response_ids = response[is_response]
    if "response_mask" not in batch:
        return prompt[is_prompt], response_ids, torch.ones_like(response_ids)
    return prompt[is_prompt], response_ids, batch["response_mask"][0][is_response].to(response_ids.dtype)
