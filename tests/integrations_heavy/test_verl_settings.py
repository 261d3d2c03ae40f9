"""What sums or averages one reward a token, held against verl's own functions, is refused at the start."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from densepath.errors import InvalidRequestError
from integrations_heavy.served import SFT, tokenizer
from integrations_heavy.verl_config import DENSE, FUNCTION, dense_config, verl_config
from live import finish

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # as in verl_config
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.reward import load_reward_manager
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    from densepath.integrations.verl.agent_loop import DenseAgentLoopManager

from densepath.integrations.verl.settings import PER_TOKEN, SUMMING, check

ROOT = Path(__file__).parents[2]


def test_the_estimators_that_sum_are_known() -> None:
    """Each of verl's, with one reward a token and with their sum on the last one."""
    torch.manual_seed(0)
    mask_B_T = torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [1] * 5, [1, 1, 1, 1, 0]])
    reward_B_T = torch.randn(4, 5) * mask_B_T
    summed_B_T = torch.zeros(4, 5)
    summed_B_T[torch.arange(4), mask_B_T.sum(-1) - 1] = reward_B_T.sum(-1)
    given = {
        "response_mask": mask_B_T, "index": np.array(["a", "a", "b", "b"], dtype=object),
        "gamma": 1.0, "lam": 1.0,
        "values": torch.zeros(4, 5), "config": verl_config().algorithm, "reward_baselines": torch.ones(4),
        "old_log_probs": -torch.rand(4, 5), "sum_pi_squared": torch.rand(4, 5),
    }  # fmt: skip
    same = {}
    for name, estimator in core_algos.ADV_ESTIMATOR_REGISTRY.items():
        known = {key: given[key] for key in inspect.signature(estimator).parameters if key in given}
        advantages = [
            estimator(token_level_rewards=each.clone(), **known)[0] for each in (reward_B_T, summed_B_T)
        ]
        same[name] = torch.allclose(*advantages, atol=1e-5)
    assert {name for name, sums in same.items() if sums} == SUMMING
    assert {name for name, sums in same.items() if not sums} == PER_TOKEN | {"remax"}


def test_the_loss_that_averages_is_known() -> None:
    """Each of verl's, with one advantage a token and with their mean on each: the same gradient?"""
    torch.manual_seed(0)
    config = verl_config(
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
        "actor_rollout_ref.rollout.name=vllm",
        "+actor_rollout_ref.actor.policy_loss.dro_beta=1.0",
    )
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    mask_B_T = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    advantage_B_T, logp_B_T = torch.randn(2, 4) * mask_B_T, -torch.rand(2, 4)
    mean_B_T = (advantage_B_T.sum(-1) / mask_B_T.sum(-1)).unsqueeze(-1) * mask_B_T

    def gradient(loss: Any, advantages: Tensor) -> Tensor:
        policy_B_T = logp_B_T.clone().requires_grad_()
        value, _ = loss(
            old_log_prob=logp_B_T, log_prob=policy_B_T, advantages=advantages, response_mask=mask_B_T,
            loss_agg_mode="token-mean", config=actor,
        )  # fmt: skip
        value.backward()
        assert policy_B_T.grad is not None
        return policy_B_T.grad

    averaging = {
        name
        for name, loss in core_algos.POLICY_LOSS_REGISTRY.items()
        if torch.allclose(gradient(loss, advantage_B_T), gradient(loss, mean_B_T), atol=1e-6)
    }
    assert averaging == {"geo_mean"}


REFUSED = {
    "an estimator that sums": ("algorithm.adv_estimator=grpo", "grpo sums the rewards of a response"),
    "remax": ("algorithm.adv_estimator=remax", "greedy response's summed reward"),
    "a loss that averages": ("actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean", "averages"),
    "the trainer before": ("trainer.use_v1=False", "dense rewards need trainer.use_v1=True"),
    "a reward model": ("reward.reward_model.enable=True", "need reward.reward_model.enable=False"),
    "another reward manager": ("reward.reward_manager.name=naive", "is naive: dense rewards need"),
    "another rollout": (
        "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null",
        "is None: dense rewards need +actor_rollout_ref.rollout.agent.agent_loop_manager_class=densepath",
    ),
    "a setting that is none": ("+reward.densepath.gamma=1", "has gamma: it can only have url and sum"),
    "no service": ("reward.densepath.url=null", "no service is given"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_sum_or_misplace_them_is_refused_at_the_start(name: str) -> None:
    override, words = REFUSED[name]
    with pytest.raises(InvalidRequestError) as refused:
        check(dense_config("http://127.0.0.1:9", override))
    assert words in str(refused.value)


def test_both_workers_check(service: str) -> None:
    config = dense_config(service, "algorithm.adv_estimator=rloo")
    with pytest.raises(InvalidRequestError, match="rloo sums"):
        DenseAgentLoopManager(config, llm_client=None)
    with pytest.raises(InvalidRequestError, match="rloo sums"):
        load_reward_manager(config, tokenizer())


def test_the_sum_is_taken_where_it_is_asked_for() -> None:
    check(dense_config("http://127.0.0.1:9", "algorithm.adv_estimator=grpo", "+reward.densepath.sum=True"))


def test_a_small_kl_term_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"KL coefficient in the reward is 0\.001"):
        check(dense_config("http://127.0.0.1:9", "algorithm.kl_ctrl.kl_coef=0.001"))


def test_the_documented_settings_are_these() -> None:
    page = (ROOT / "docs/integrations/verl.md").read_text()
    assert [setting for setting in (*DENSE, *FUNCTION) if setting not in page] == []


def test_verl_takes_the_config_of_the_training_example() -> None:
    """Composed by verl's own command line, checked by verl and here; it warns of nothing."""
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "SFT": str(SFT),
        "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    done = finish(["bash", str(ROOT / "examples/verl/train.sh"), "--cfg", "job"], env=env, within=120)
    assert done.returncode == 0, done.stderr[-4000:]
    config = OmegaConf.create(done.stdout)
    assert check(config).url == "http://127.0.0.1:8000"
    validate_config(config, use_reference_policy=True, use_critic=False)
