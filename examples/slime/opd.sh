#!/usr/bin/env bash
# What slime's own examples/on_policy_distillation/run-qwen3-8B-opd.sh needs to take dpr-teacher as its teacher: source this there,
# in the place of its SGLang teacher, its RM_ARGS and its GRPO_ARGS.
# Before: densepath serve --pair run --teacher-kl 0.5 --port 13141
# shellcheck disable=SC2034  # the script that sources this reads them

TEACHER_URL=${TEACHER_URL:-http://127.0.0.1:13141}
TEACHER_KL=${TEACHER_KL:-0.5} # the service's --teacher-kl: the advantage is then r - b (log pi - log p_sft)

RM_ARGS=(
    --custom-rm-path slime.rollout.on_policy_distillation.reward_func
    --custom-reward-post-process-path slime.rollout.on_policy_distillation.post_process_rewards
    --rm-url "$TEACHER_URL/generate?model=dpr-teacher"
)

GRPO_ARGS=(
    --advantage-estimator grpo
    --use-opd
    --opd-type sglang
    --opd-kl-coef "$TEACHER_KL"
    --entropy-coef 0.00
)

ROLLOUT_TEMPERATURE_ARGS=(--rollout-temperature 1)

until curl -sf "$TEACHER_URL/readyz" >/dev/null; do
    echo "waiting for the teacher"
    sleep 5
done
