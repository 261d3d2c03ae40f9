"""verl's own path from a rollout to advantages, with Ray, as `verl.trainer.main_ppo` walks it; saves the end.

    python -m integrations_heavy.verl_rollout URL MODEL OUT

Rollout workers, reward workers, TransferQueue and the trainer's advantages are verl's. What stands in: the
engine that samples (it answers fixed ids) and the log-probabilities of the policy and of its reference.
"""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
import torch
import transfer_queue as tq
from verl.experimental.reward_loop import RewardLoopManager
from verl.trainer.ppo.core_algos import FixedKLController
from verl.trainer.ppo.v1 import PPOTrainer
from verl.utils import tensordict_utils as tu
from verl.utils.import_utils import load_class_from_fqn
from verl.workers.rollout.replica import TokenOutput

from integrations_heavy.verl_config import dense_config

WITHIN = 120.0  # seconds for one prompt's rollouts and their rewards
#: Two rollouts of each prompt. Of the last one's, one has an id that no pair has.
RESPONSES = {
    "sum": [[50, 51, 52, 2], [60, 61, 62, 63, 64, 2]],
    "reward": [[70, 71], [80, 81, 82, 83]],
    "refused": [[50, 51], [99_999]],
}


class Sampler:
    """In the place of verl's client of its inference servers."""

    def __init__(self) -> None:
        self._next = iter([ids for rollouts in RESPONSES.values() for ids in rollouts])

    async def generate(self, **request: Any) -> TokenOutput:
        """The next of the fixed responses."""
        return TokenOutput(token_ids=next(self._next))


def settings(url: str, model: str) -> Any:
    """Small, with one worker of each kind."""
    return dense_config(
        url,
        f"actor_rollout_ref.model.path={model}",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.n=2",
        "actor_rollout_ref.rollout.prompt_length=64",
        "actor_rollout_ref.rollout.response_length=8",
        "actor_rollout_ref.rollout.agent.num_workers=1",
        "reward.num_workers=1",
        "transfer_queue.enable=True",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        "transfer_queue.backend.SimpleStorage.total_storage_size=100",
    )


def roll_out(config: Any) -> dict[str, str]:
    """Roll out each prompt, one after the other; what verl calls each in the end."""
    rewards = RewardLoopManager(config)
    manager = load_class_from_fqn(config.actor_rollout_ref.rollout.agent.agent_loop_manager_class).create(
        config=config,
        llm_client=Sampler(),
        teacher_client=None,
        reward_loop_worker_handles=rewards.reward_loop_worker_handles,
    )
    ends = {}
    for n, uid in enumerate(RESPONSES):
        chat = np.empty(1, dtype=object)
        chat[0] = [{"role": "user", "content": f"the {uid}"}]
        prompt = {"raw_prompt": chat, "uid": np.array([uid], dtype=object), "index": np.array([n])}
        batch = tu.get_tensordict(prompt)
        tu.assign_non_tensor_data(batch, "global_steps", 1)
        tq.kv_batch_put(keys=[uid], partition_id="train", tags=[{"is_prompt": True, "status": "pending"}])
        manager.generate_sequences(batch)
        ends[uid] = end_of(uid)
    return ends


def end_of(uid: str) -> str:
    """The status of a prompt once verl has done with it."""
    deadline = time.monotonic() + WITHIN
    while (status := tq.kv_list("train")["train"][uid]["status"]) not in ("finished", "failure"):
        if time.monotonic() > deadline:
            raise SystemExit(f"{uid}: {status}")
        time.sleep(0.1)  # between two looks at the condition
    return str(status)


def put_logps(keys: list[str]) -> None:
    """Log-probabilities of the policy, and of its reference: 0.25 t less at token t."""
    responses = tq.kv_batch_get(keys=keys, partition_id="train", select_fields=["responses"])["responses"]
    lengths = responses.offsets().diff().tolist()
    logps = [torch.linspace(-1, -2, length) for length in lengths]
    references = [logp_T - 0.25 * torch.arange(len(logp_T)) for logp_T in logps]
    fields = {
        name: torch.nested.as_nested_tensor(rows, layout=torch.jagged)
        for name, rows in {"old_log_probs": logps, "ref_log_prob": references}.items()
    }
    tq.kv_batch_put(keys=keys, partition_id="train", fields=tu.get_tensordict(fields))


def main(url: str, model: str, out: str) -> None:
    """Rollouts, then the trainer's own KL term and advantages."""
    ray.init(num_cpus=4, include_dashboard=False)
    config = settings(url, model)
    tq.init(config.transfer_queue)
    ends = roll_out(config)
    keys = [f"{uid}_{session}_0" for uid in ("sum", "reward") for session in range(2)]
    put_logps(keys)
    controller = FixedKLController(config.algorithm.kl_ctrl.kl_coef)
    trainer = SimpleNamespace(config=config, kl_ctrl_in_reward=controller)
    PPOTrainer._compute_advantage(trainer, tq.KVBatchMeta(keys, [{} for _ in keys], "train"), {})
    fields = ["prompts", "responses", "response_mask", "rm_scores", "token_level_rewards", "returns"]
    data = tq.kv_batch_get(keys=keys, partition_id="train", select_fields=fields)
    rows = {name: list(data[name].unbind()) for name in fields}
    kept = [key for key in tq.kv_list("train")["train"] if key.startswith("refused_")]
    beside = tq.kv_batch_get(keys=kept, partition_id="train", select_fields=["responses"])["responses"]
    torch.save({"ends": ends, "beside": [ids.tolist() for ids in beside.unbind()], "rows": rows}, out)
    tq.close()
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
