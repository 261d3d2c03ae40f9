"""The settings for dense rewards in verl's config. Settings that would sum or misplace them are refused.

tests/integrations_heavy/test_verl_settings.py compares the lists with verl's own functions.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any

from densepath.errors import InvalidRequestError
from densepath.rewards.kl import KL_COEFFICIENT, LEAST_KL_COEFFICIENT

AGENT_LOOP_MANAGER = "densepath.integrations.verl.agent_loop.DenseAgentLoopManager"
REWARD_MANAGER = "DenseRewardManager"
REWARD_MANAGER_MODULE = "pkg://densepath.integrations.verl.reward_manager"

#: verl's estimators that keep one reward per token. An estimator that a user registers is not checked.
PER_TOKEN = frozenset({"gae", "reinforce_plus_plus", "optimal_token_baseline", "tir_optimal_token_baseline"})
#: Those that begin with `token_level_rewards.sum(dim=-1)`.
SUMMING = frozenset(
    {
        "gdpo",
        "gpg",
        "grpo",
        "grpo_passk",
        "grpo_vectorized",
        "opo",
        "reinforce_plus_plus_baseline",
        "rloo",
        "rloo_vectorized",
    }
)


@dataclass(frozen=True)
class Settings:
    """`reward.densepath` of verl's config, and the key of the service."""

    url: str | list[str]
    """The service, or its replicas."""
    sum: bool = False
    """Accept an estimator that sums: it gives one reward per response, for the ids as they were sampled."""
    api_key: str | None = None
    """From DENSEPATH_API_KEY and not from the config, because verl prints its config."""

    @classmethod
    def read(cls, config: Any) -> Settings:
        """Read them from a whole config.

        Raises:
            InvalidRequestError: there is no URL, or an unknown key.
        """
        given = dict(config.reward.get("densepath") or {})
        url, summed = given.pop("url", None), given.pop("sum", False)
        if given:
            raise InvalidRequestError(
                f"reward.densepath has {' and '.join(given)}: it can only have url and sum"
            )
        if not url:
            raise InvalidRequestError("no service is given: set +reward.densepath.url=http://HOST:8000")
        url = url if isinstance(url, str) else list(url)
        return cls(url, bool(summed), os.environ.get("DENSEPATH_API_KEY"))


def check(config: Any) -> Settings:
    """The settings, if verl's config keeps one reward per token. Warns of a KL term that is too small.

    Raises:
        InvalidRequestError: a setting would sum or misplace rewards; the message says what to set.
    """
    settings = Settings.read(config)
    _check_estimator(_name(config.algorithm.adv_estimator), settings)
    _check_loss(config.actor_rollout_ref.actor, settings)
    _check_path(config)
    _warn_of_kl(config)
    return settings


def _check_estimator(name: str, settings: Settings) -> None:
    if name in SUMMING and not settings.sum:
        raise InvalidRequestError(
            f"algorithm.adv_estimator={name} sums the rewards of a response before it uses them: set one of "
            f"{', '.join(sorted(PER_TOKEN))}, or +reward.densepath.sum=True if you want the sum",
            param="algorithm.adv_estimator",
        )
    if name == "remax":
        raise InvalidRequestError(
            "algorithm.adv_estimator=remax subtracts the greedy response's summed reward from the return of "
            f"every token, even of late ones: set one of {', '.join(sorted(PER_TOKEN))}",
            param="algorithm.adv_estimator",
        )


def _check_loss(actor: Any, settings: Settings) -> None:
    if actor.policy_loss.loss_mode == "geo_mean" and not settings.sum:
        raise InvalidRequestError(
            "actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean averages the advantages of a response: "
            "set another, such as vanilla",
            param="actor_rollout_ref.actor.policy_loss.loss_mode",
        )


def _check_path(config: Any) -> None:
    """Require the trainer, the reward manager and the agent loop that keep one reward per token."""
    manager = config.reward.reward_manager
    wanted: list[tuple[str, Any, Any]] = [
        ("trainer.use_v1", config.trainer.use_v1, True),
        ("reward.reward_model.enable", config.reward.reward_model.enable, False),
        ("reward.reward_manager.source", manager.source, "importlib"),
        ("reward.reward_manager.name", manager.name, REWARD_MANAGER),
        ("reward.reward_manager.module.path", manager.module.path, REWARD_MANAGER_MODULE),
        (
            "+actor_rollout_ref.rollout.agent.agent_loop_manager_class",
            config.actor_rollout_ref.rollout.agent.get("agent_loop_manager_class"),
            AGENT_LOOP_MANAGER,
        ),
    ]
    for setting, value, right in wanted:
        if value != right:
            raise InvalidRequestError(
                f"{setting.lstrip('+')} is {value}: dense rewards need {setting}={right}",
                param=setting.lstrip("+"),
            )


def _warn_of_kl(config: Any) -> None:
    algorithm = config.algorithm
    coefficient = algorithm.kl_ctrl.kl_coef if algorithm.use_kl_in_reward else 0.0
    if coefficient < LEAST_KL_COEFFICIENT and not config.actor_rollout_ref.actor.use_kl_loss:
        warnings.warn(
            f"the KL coefficient in the reward is {coefficient:g}: with less than {LEAST_KL_COEFFICIENT:g}, "
            "dense rewards have risen while the policy got worse; set algorithm.use_kl_in_reward=True "
            f"algorithm.kl_ctrl.kl_coef={KL_COEFFICIENT:g}",
            stacklevel=3,
        )


def _name(estimator: Any) -> str:
    return str(getattr(estimator, "value", estimator))
