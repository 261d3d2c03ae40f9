#!/usr/bin/env bash
# Dense-Path REINFORCE by verl's trainer, on the demo pair. Needs a GPU, and `densepath serve --demo` in another terminal.
#
#   SFT=DIR URL=http://127.0.0.1:8000 examples/verl/train.sh [verl's own overrides]
set -euo pipefail
sft=${SFT:-$(python -c 'from densepath.demo import default_directory; print(default_directory() / "sft")')}
url=${URL:-http://127.0.0.1:8000}
prompts=$(mktemp -d)/prompts.parquet
python "$(dirname "${BASH_SOURCE[0]}")/prompts.py" "$prompts" >&2

python -m verl.trainer.main_ppo \
  reward.reward_manager.source=importlib \
  reward.reward_manager.name=DenseRewardManager \
  reward.reward_manager.module.path=pkg://densepath.integrations.verl.reward_manager \
  +actor_rollout_ref.rollout.agent.agent_loop_manager_class=densepath.integrations.verl.agent_loop.DenseAgentLoopManager \
  +reward.densepath.url="$url" \
  algorithm.adv_estimator=reinforce_plus_plus \
  algorithm.gamma=1.0 \
  algorithm.use_kl_in_reward=True \
  algorithm.kl_ctrl.kl_coef=0.5 \
  data.train_files="$prompts" \
  data.val_files="$prompts" \
  data.train_batch_size=64 \
  data.max_prompt_length=64 \
  data.max_response_length=16 \
  actor_rollout_ref.model.path="$sft" \
  actor_rollout_ref.actor.optim.lr=1e-4 \
  actor_rollout_ref.actor.ppo_mini_batch_size=64 \
  actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=64 \
  actor_rollout_ref.rollout.name=vllm \
  actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
  actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=64 \
  actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=64 \
  trainer.n_gpus_per_node=1 \
  trainer.val_before_train=False \
  trainer.test_freq=-1 \
  trainer.save_freq=-1 \
  trainer.total_training_steps=40 \
  trainer.logger=console \
  "$@"
