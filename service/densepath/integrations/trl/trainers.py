"""TRL's GRPO and RLOO with one advantage per token."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from trl import GRPOTrainer, RLOOTrainer

from densepath.integrations import IntegrationError
from densepath.integrations.trl.checks import GRPO_RULES, RLOO_RULES
from densepath.integrations.trl.credit import DenseCredit

__all__ = ["DensePathGRPOTrainer", "DensePathRLOOTrainer"]


class DensePathGRPOTrainer(DenseCredit, GRPOTrainer):  # type: ignore[misc]  # TRL carries no types
    """GRPOTrainer with the service's per-token rewards: advantages are (B, T), and the loss is TRL's own.

    `beta` is TRL's: a KL term for each position in the loss. Tokens that tools add to a completion get no
    reward. With the pair's SFT as the policy, `loss_type="dr_grpo"` is Dense-Path REINFORCE, except for a
    constant factor.
    """

    RULES = GRPO_RULES

    def _chosen(self, generated: tuple[Any, ...]) -> list[list[int]] | None:
        mask: list[list[int]] | None = generated[2]
        return mask


class DensePathRLOOTrainer(DenseCredit, RLOOTrainer):  # type: ignore[misc]
    """RLOOTrainer with the service's per-token rewards: Dense-Path REINFORCE with `beta` as KL coefficient.

    As in TRL, the KL term is part of the reward, but here of each token's reward. TRL has one ratio per
    completion; here there is one per token, clipped as in TRL. The loss is the mean over completions of the
    sum over tokens.
    """

    RULES = RLOO_RULES

    def __init__(self, *args: Any, **options: Any) -> None:
        self._logp_B_T: list[Tensor] | None = None  # a list while TRL scores what it generated
        super().__init__(*args, **options)

    def _get_per_token_logps_and_entropies(self, *args: Any, **options: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **options)
        if self._logp_B_T is not None:
            self._logp_B_T.append(result[0])
        return result

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        recorded: list[Tensor] = []
        self._logp_B_T = recorded
        output = super()._generate_and_score_completions(inputs)
        self._logp_B_T = None
        return output | {"old_per_token_logps": recorded[0]}

    def _kl_term(self) -> NDArray[np.floating] | None:
        recorded, passes = self._logp_B_T or [], 2 if self.beta else 1
        if len(recorded) != passes:
            raise IntegrationError(
                f"TRL scored its completions {len(recorded)} times with its own models, but this adapter "
                f"expects {passes}: the policy, and the reference if beta is set"
            )
        if not self.beta:
            return None
        policy_B_T, reference_B_T = recorded
        term: NDArray[np.floating] = (self.beta * (policy_B_T - reference_B_T)).float().cpu().numpy()
        return term

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        mask_B_T = inputs["completion_mask"]
        logp_B_T, entropy_B_T, router_loss = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], mask_B_T], dim=1),
            inputs["completion_ids"].size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
        )
        advantage_B_T = inputs["advantages"]
        ratio_B_T = torch.exp(logp_B_T - inputs["old_per_token_logps"])
        clipped_B_T = ratio_B_T.clamp(1 - self.epsilon_low, 1 + self.epsilon_high)
        loss_B_T = -torch.min(ratio_B_T * advantage_B_T, clipped_B_T * advantage_B_T)
        loss: Tensor = (loss_B_T * mask_B_T).sum(dim=1).mean()
        low_B_T = (ratio_B_T < 1 - self.epsilon_low) & (advantage_B_T < 0)
        high_B_T = (ratio_B_T > 1 + self.epsilon_high) & (advantage_B_T > 0)
        self._log_mean("entropy", entropy_B_T, mask_B_T)
        self._log_mean("clip_ratio/low_mean", low_B_T, mask_B_T)
        self._log_mean("clip_ratio/high_mean", high_B_T, mask_B_T)
        self._log_mean("clip_ratio/region_mean", low_B_T | high_B_T, mask_B_T)
        if self.aux_loss_enabled:
            self._log_mean("aux_loss", router_loss, torch.ones_like(router_loss))
            loss = loss + self.router_aux_loss_coef * router_loss
        return loss

    def _log_mean(self, name: str, value: Tensor, mask: Tensor) -> None:
        """The mean over the tokens of all processes, under TRL's name for it."""
        sums = torch.stack([(value * mask).sum(), mask.sum()]).float().detach()
        total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        self._metrics["train" if self.model.training else "eval"][name].append(total / max(count, 1.0))
