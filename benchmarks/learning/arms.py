"""What each arm does with an SFT run: Dense-Path REINFORCE in its forms, and the controls.

Advantages are the product's own arithmetic (`densepath.rewards.advantages`). An arm starts from the SFT
weights with a fresh AdamW. All arms of a case see the same prompts; so do all checks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from models import Model, Step, Weights, away_from, generate, logprobs, next_token
from numpy.typing import NDArray
from plan import Arm, Continued, Decoded, Dpr, Reward
from tasks import EOS, Batch, Task
from training import Recipe, Sft, batches, loss_of, optimizer_of, stream, update

from densepath.rewards.advantages import Baseline, advantages
from densepath.rewards.reward import returns_to_go

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """Where an arm arrived: `start` begins a decoding with an empty cache. Nats are of whole responses.

    `reward`, `kl` and `cut` are means over the last quarter of an on-policy arm's steps: the credited reward,
    the log-ratio to SFT, and the share of responses without an EOS token.
    """

    start: Callable[[], Step]
    reward: float | None = None
    kl: float | None = None
    cut: float | None = None


def run_arm(task: Task, sft: Sft, arm: Arm, recipe: Recipe, steps: int, seed: int) -> Outcome:
    """What the arm makes of an SFT run, in so many steps."""
    if isinstance(arm, Decoded):
        pair = model_of(task, recipe, sft.last), model_of(task, recipe, sft.weights[arm.reference])
        return Outcome(lambda: away_from(*pair, arm.alpha))
    if isinstance(arm, Continued):
        return _continue_sft(task, sft, arm, recipe, steps, seed)
    return reinforce(task, sft, arm, recipe, steps, seed)


def credited(
    reward: Reward, logp_sft_N_T: Floats, logp_reference_N_T: Floats, mask_N_T: Mask, rng: np.random.Generator
) -> Floats:
    """The reward of every token, float [N, T], nats; 0 where there is no token."""
    reward_N_T = np.where(mask_N_T, logp_sft_N_T - logp_reference_N_T, 0.0)
    if reward is Reward.SFT:
        return np.where(mask_N_T, logp_sft_N_T, 0.0)
    if reward is Reward.SHUFFLED:
        return np.where(mask_N_T, reward_N_T[rng.permutation(len(reward_N_T))], 0.0)
    if reward is Reward.SUM:
        last_N_T = mask_N_T & (np.cumsum(mask_N_T, axis=1) == mask_N_T.sum(axis=1, keepdims=True))
        return np.where(last_N_T, reward_N_T.sum(axis=1, keepdims=True), 0.0)
    return reward_N_T


def _continue_sft(task: Task, sft: Sft, arm: Continued, recipe: Recipe, steps: int, seed: int) -> Outcome:
    """As many further SFT steps; the demonstrations go on where SFT stopped."""
    model = model_of(task, recipe, sft.last)
    optimizer = optimizer_of(model, recipe.dpr_rate if arm.at_dpr_rate else recipe.sft_rate)
    order = batches(sft.demonstrations, recipe.batch, seed, skip=sft.steps)
    for _ in range(steps):
        update(model, [optimizer], loss_of(model, next(order)))
    return Outcome(lambda: next_token(model))


def reinforce(task: Task, sft: Sft, arm: Dpr, recipe: Recipe, steps: int, seed: int) -> Outcome:
    """Dense-Path REINFORCE, strictly on-policy: one step a batch of fresh prompts, one response each."""
    policy = model_of(task, recipe, sft.last)
    pair = model_of(task, recipe, sft.last), model_of(task, recipe, sft.weights[arm.reference])
    optimizer = optimizer_of(policy, recipe.dpr_rate)
    rng, shuffle = stream(seed, "prompts"), stream(seed, "shuffle")
    sampler = torch.Generator().manual_seed(seed)
    seen = []
    for _ in range(steps):
        prompt_N_P = task.prompts(recipe.batch, rng)
        batch = generate(next_token(policy), prompt_N_P, task.response_length, sampler)
        seen.append(_step(policy, pair, optimizer, arm, batch, shuffle))
    reward, kl, cut = np.mean(seen[-max(1, steps // 4) :], axis=0)
    return Outcome(lambda: next_token(policy), float(reward), float(kl), float(cut))


def _step(
    policy: Model,
    pair: tuple[Model, Model],
    optimizer: torch.optim.Optimizer,
    arm: Dpr,
    batch: Batch,
    shuffle: np.random.Generator,
) -> tuple[float, float, float]:
    """One update. Returns the batch's mean reward, log-ratio to SFT, and share of cut responses."""
    ended_N = (batch.response_N_R == EOS).any(axis=1)
    mask_N_T = batch.mask_N_R & ended_N[:, None]  # a cut response has a value left over: it teaches nothing
    responses = max(1, ended_N.sum())
    ids_N_PR = torch.from_numpy(batch.ids_N_PR)
    with torch.inference_mode():
        logp_sft_N_T, logp_reference_N_T = (
            logprobs(model, ids_N_PR, batch.prompt_length).numpy() for model in pair
        )
    logp = logprobs(policy, ids_N_PR, batch.prompt_length)
    logp_N_T = logp.detach().numpy()
    reward_N_T = credited(arm.reward, logp_sft_N_T, logp_reference_N_T, mask_N_T, shuffle)
    less_kl_N_T = reward_N_T - arm.kl * (logp_N_T - logp_sft_N_T)
    return_N_T = returns_to_go(np.where(mask_N_T, less_kl_N_T, 0.0), arm.gamma)
    advantage_N_T = advantages(return_N_T, mask_N_T, Baseline.BATCH, np.arange(len(mask_N_T)))
    weight_N_T = torch.from_numpy(advantage_N_T.astype(np.float32))
    update(policy, [optimizer], -(weight_N_T * logp).sum() / responses)
    log_ratio_N_T = np.where(mask_N_T, logp_N_T - logp_sft_N_T, 0.0)
    return reward_N_T.sum() / responses, log_ratio_N_T.sum() / responses, 1 - ended_N.mean()


def model_of(task: Task, recipe: Recipe, weights: Weights) -> Model:
    """A model with these weights, its own copy."""
    model = Model(task, recipe.shape)
    model.load_state_dict(weights)
    return model
