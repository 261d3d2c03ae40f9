"""verl's own config, composed by hydra as its command line does."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # engines that are not installed here, and what Ray deprecates in itself
    import verl
    import verl.experimental.reward_loop
    import verl.trainer.ppo.v1
from hydra import compose, initialize_config_dir

DENSE = (
    "reward.reward_manager.source=importlib",
    "reward.reward_manager.name=DenseRewardManager",
    "reward.reward_manager.module.path=pkg://densepath.integrations.verl.reward_manager",
    "+actor_rollout_ref.rollout.agent.agent_loop_manager_class="
    "densepath.integrations.verl.agent_loop.DenseAgentLoopManager",
    "algorithm.adv_estimator=reinforce_plus_plus",
    "algorithm.use_kl_in_reward=True",
    "algorithm.kl_ctrl.kl_coef=0.5",
)

FUNCTION = (
    "reward.custom_reward_function.path=pkg://densepath.integrations.verl.function",
    "reward.custom_reward_function.name=compute_score",
)


def verl_config(*overrides: str) -> Any:
    """The default config of `verl.trainer.main_ppo` with these overrides."""
    directory = Path(verl.__file__).parent / "trainer" / "config"
    with initialize_config_dir(str(directory), version_base=None):
        return compose("ppo_trainer", overrides=list(overrides))


def dense_config(url: str, *overrides: str) -> Any:
    """What docs/integrations/verl.md sets, for a service, with these overrides."""
    return verl_config(*DENSE, f"+reward.densepath.url={url}", *overrides)
