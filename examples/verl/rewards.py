"""Responses of the demo pair through verl's reward worker and advantages: one reward a token, one advantage.

Start `densepath serve --demo` in another terminal. Needs verl, no GPU: the responses are given.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import torch
import verl
from hydra import compose, initialize_config_dir
from tensordict import TensorDict
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.reward_loop import RewardLoopWorker
from verl.trainer.ppo.ray_trainer import compute_advantage

from densepath.demo import default_directory

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service")
parser.add_argument("--sft", type=Path, default=default_directory() / "sft", help="the pair's SFT checkpoint")
parser.add_argument("--ask", default="reverse: planet")
parser.add_argument("--responses", nargs="+", default=["tenalp", "tenxlp"])
asked = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(asked.sft)
chat = [{"role": "user", "content": asked.ask}]
prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
responses = [
    torch.tensor([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])
    for text in asked.responses
]

ids = torch.nn.utils.rnn.pad_sequence(responses, batch_first=True, padding_value=tokenizer.pad_token_id)
mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(each) for each in responses], batch_first=True)
prompts = torch.tensor([prompt_ids] * len(responses))
batch = {
    "prompts": prompts,
    "responses": ids,
    "response_mask": mask,
    "attention_mask": torch.cat([torch.ones_like(prompts), mask], dim=1),
}
data = DataProto(TensorDict(batch, batch_size=len(responses)))

settings = [
    f"actor_rollout_ref.model.path={asked.sft}",
    f"+reward.densepath.url={asked.url}",
    "reward.reward_manager.source=importlib",
    "reward.reward_manager.name=DenseRewardManager",
    "reward.reward_manager.module.path=pkg://densepath.integrations.verl.reward_manager",
    "+actor_rollout_ref.rollout.agent.agent_loop_manager_class="
    "densepath.integrations.verl.agent_loop.DenseAgentLoopManager",
    "algorithm.adv_estimator=reinforce_plus_plus",
    "algorithm.use_kl_in_reward=True",
    "algorithm.kl_ctrl.kl_coef=0.5",
]
with initialize_config_dir(str(Path(verl.__file__).parent / "trainer" / "config"), version_base=None):
    config = compose("ppo_trainer", overrides=settings)


async def score() -> None:
    """Put `token_level_rewards` into the batch: no KL term, the policy is the SFT."""
    worker = RewardLoopWorker(config)
    scores = [output["reward_score"] for output in await worker.compute_score_batch(data)]
    data.batch["token_level_rewards"] = worker.reward_manager.assemble_rm_scores(data, scores)
    await worker.reward_manager.client.aclose()


asyncio.run(score())
made = compute_advantage(data, "reinforce_plus_plus", gamma=1.0, config=config.algorithm)
for name in ("token_level_rewards", "returns", "advantages"):
    print(name)
    for text, row in zip(asked.responses, made.batch[name].tolist(), strict=True):
        print(f"  {text:10}", " ".join(f"{value:+.3f}" for value in row))
