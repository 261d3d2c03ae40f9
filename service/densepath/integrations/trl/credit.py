"""What both trainers share: the sampled ids, their rewards, and one advantage per id.

    r'_t = r_t - KL term            where the trainer puts its KL term into the reward (RLOO)
    G_t  = r'_t + gamma G_{t+1}     over the tokens that the policy chose
    A_t  = G_t - baseline_t         `densepath.rewards.advantages`, over the completions of all processes

Arrays are [B, T]: B completions of this process, padded on the right to T tokens as TRL pads their ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densepath.client import Client, Score
from densepath.errors import InvalidRequestError
from densepath.integrations import IntegrationError
from densepath.integrations.alignment import check_policy
from densepath.integrations.trl.checks import (
    Rule,
    check_columns,
    check_gamma,
    check_processing_class,
    check_release,
    check_settings,
    warn_of_kl,
)
from densepath.rewards.advantages import Baseline, advantages
from densepath.rewards.reward import returns

Float32 = NDArray[np.float32]


@dataclass
class Sampled:
    """The result of one generation by TRL. `mask_B` is 1 where the policy chose the completion's token."""

    prompt_ids_B: list[list[int]]
    completion_ids_B: list[list[int]]
    mask_B: list[list[int]]
    reward_B: list[Float32] | None = None  # one reward per chosen token, once they are scored


class DenseCredit:
    """A base class that stands before one of TRL's trainers. That trainer's loss takes advantages (B, T).

    The service's rewards replace the reward functions. They are those of the ids exactly as sampled. TRL logs
    their sums as `reward` and `rewards/dense_reward/mean`. All come from the pair version that is served at
    the start.

    Args:
        model: the policy, as for TRL; at the start it is the SFT checkpoint of the pair.
        url: the reward service, or its replicas.
        args: TRL's config. It is required, because its settings decide whether the rewards stay per token.
        gamma: 1 is the paper's return-to-go, 0 credits each token with its own reward.
        baseline: "leave-one-out", "batch" or "none": which mean return at the same position is subtracted.
        api_key: the API key of the service.
        options: as for TRL's trainer, except reward functions.

    Raises:
        InvalidRequestError: a setting would sum or misplace rewards; the message says what to set.
        IntegrationError: this adapter does not know the release of TRL.
        AlignmentError: the policy's tokenizer is not the pair's.
        DensepathError: the service cannot be reached.
    """

    RULES: tuple[Rule, ...] = ()

    def __init__(
        self,
        model: Any,
        url: str | Sequence[str],
        *,
        args: Any,
        gamma: float = 1.0,
        baseline: str = Baseline.LEAVE_ONE_OUT,
        api_key: str | None = None,
        **options: Any,
    ) -> None:
        check_release()
        check_settings(args, self.RULES)
        check_gamma(gamma)
        warn_of_kl(args.beta)
        self._gamma, self._baseline = gamma, Baseline(baseline)
        self._url, self._api_key = url, api_key
        with Client(url, api_key=api_key) as client:
            pair = client.pair()
        self._model_version = str(pair["version"])
        self._sampled = Sampled([], [], [])
        super().__init__(model=model, reward_funcs=self.dense_reward, args=args, **options)  # type: ignore[call-arg]
        tool: Any = self  # with the attributes of TRL's trainer
        check_processing_class(tool.processing_class)
        check_policy(tool.processing_class, pair)
        if tool.reward_funcs != [self.dense_reward]:
            raise InvalidRequestError(
                "the environment has its own reward, which cannot be combined with one reward per token: "
                "remove its get_reward",
                param="environment_factory",
            )

    def dense_reward(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any, **columns: Any
    ) -> list[float]:
        """The reward function that TRL calls: scores what was just sampled, and returns the sums in nats."""
        check_columns(columns)
        sampled = self._sampled
        if completion_ids != sampled.completion_ids_B:
            raise IntegrationError("TRL asks for rewards of completions that it has not just generated")
        items = [
            {"token_ids": [*prompt_ids, *ids], "response_mask": [0] * len(prompt_ids) + list(mask)}
            for prompt_ids, ids, mask in zip(
                sampled.prompt_ids_B, sampled.completion_ids_B, sampled.mask_B, strict=True
            )
        ]
        # Each call has its own client, so that no connection is left open at the end of a run.
        with Client(self._url, api_key=self._api_key) as client:
            scores: Sequence[Score] = client.score(items, model_version=self._model_version).items
        sampled.reward_B = [cast(Float32, score.reward_T) for score in scores]  # a failed score has raised
        return [cast(float, score.sum) for score in scores]

    def _chosen(self, generated: tuple[Any, ...]) -> list[list[int]] | None:
        """From the result of `_generate`: the mask of the tokens that the policy chose, or None for all."""
        return None

    def _kl_term(self) -> NDArray[np.floating] | None:
        """What is subtracted from each reward, [B, T] in nats, or None."""
        return None

    def _generate(self, prompts: list[Any]) -> Any:
        generated = super()._generate(prompts)  # type: ignore[misc]
        prompt_ids, completion_ids = generated[:2]
        masks = self._chosen(generated) or [[1] * len(ids) for ids in completion_ids]
        self._sampled = Sampled(prompt_ids, completion_ids, masks)
        return generated

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        output["advantages"] = self._advantages(output)
        return output

    def _advantages(self, output: dict[str, Any]) -> Tensor:
        """A_t, float32 [B, T]: 0 where there is no token, or a token that the loss leaves out."""
        tool: Any = self
        ids, device = output["completion_ids"], output["completion_ids"].device
        return_B_T = torch.from_numpy(self._returns(ids.shape)).to(device)
        mask_B_T = output["completion_mask"] * output.get("tool_mask", 1)
        return_N_T, mask_N_T = (
            tool.accelerator.gather(tool.accelerator.pad_across_processes(each, dim=1)).cpu().numpy()
            for each in (return_B_T, mask_B_T)
        )
        rollouts = tool.num_generations if tool.model.training else tool.num_generations_eval
        prompt_N = np.arange(len(return_N_T)) // rollouts
        advantage_N_T = advantages(return_N_T, mask_N_T.astype(bool), self._baseline, prompt_N)
        first = tool.accelerator.process_index * len(ids)
        mine = advantage_N_T[first : first + len(ids), : ids.shape[1]]
        return torch.from_numpy(mine.astype(np.float32)).to(device)

    def _returns(self, shape: tuple[int, int]) -> Float32:
        """G_t, float32 of `shape` (B, T); 0 where the policy chose no token."""
        sampled, kl_B_T = self._sampled, self._kl_term()
        if sampled.reward_B is None:
            raise IntegrationError("TRL has not asked for the rewards of what it generated")
        return_B_T = np.zeros(shape, np.float32)
        for row, (reward_T, mask) in enumerate(zip(sampled.reward_B, sampled.mask_B, strict=True)):
            at = np.flatnonzero(mask)
            lowered_T = reward_T if kl_B_T is None else reward_T - kl_B_T[row, at]
            return_B_T[row, at] = returns(lowered_T.astype(np.float32), self._gamma)
        return return_B_T
