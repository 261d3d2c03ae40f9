"""A step's responses, and what REINFORCE multiplies each of their tokens by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from densepath.rewards import shaping
from densepath.rewards.advantages import advantages, returns_to_go, with_kl
from densepath.trainer.errors import TrainerError
from densepath.trainer.reinforce.settings import TrainSettings

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Response:
    """One sampled response. `reward_T` and `logp_sft_T` are None where it is not scored, and not learned."""

    prompt: int  # index in the prompts' file
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    ended: bool
    logp_T: Float32  # under the policy that sampled it, nats
    reward_T: Float32 | None = None  # r_t, nats, unshaped
    logp_sft_T: Float32 | None = None


def can_be_learned(response_ids: Sequence[int], ended: bool, vocab_size: int) -> bool:
    """A response that was cut at the limit leaves a value uncancelled; an id from `vocab_size` on, a row that
    the policy has and the pair's other model has not, has no score.
    """
    return ended and max(response_ids) < vocab_size


def weigh(responses_N: Sequence[Response], settings: TrainSettings) -> list[NDArray[np.float64]]:
    """A_t of every response, float64 [T] each: zeros where it is not learned.

    Raises TrainerError where none is: a step from nothing would look like one.
    """
    learned = [n for n, response in enumerate(responses_N) if response.reward_T is not None]
    if not learned:
        raise TrainerError(
            f"none of {len(responses_N)} responses ended within {settings.max_new_tokens} tokens: there is "
            "nothing to learn from; raise --max-new-tokens, or check that the SFT model ends its responses"
        )
    chosen = [responses_N[n] for n in learned]
    length_N = np.array([len(response.response_ids) for response in chosen])
    mask_N_T = np.arange(length_N.max()) < length_N[:, None]
    reward_N_T = _pad(_shape(chosen, settings), mask_N_T)
    logp_N_T = _pad([response.logp_T for response in chosen], mask_N_T)
    logp_sft_N_T = _pad([_scored(response.logp_sft_T) for response in chosen], mask_N_T)
    less_kl_N_T = with_kl(reward_N_T, logp_N_T, logp_sft_N_T, settings.kl)
    return_N_T = returns_to_go(less_kl_N_T, mask_N_T, settings.gamma)
    prompt_N = np.array([response.prompt for response in chosen])
    advantage_N_T = advantages(return_N_T, mask_N_T, settings.baseline, prompt_N)
    weights_N = [np.zeros(len(response.response_ids)) for response in responses_N]
    for n, advantage_T, length in zip(learned, advantage_N_T, length_N, strict=True):
        weights_N[n] = advantage_T[:length]
    return weights_N


def _shape(responses_N: Sequence[Response], settings: TrainSettings) -> list[NDArray[np.floating]]:
    """The rewards with the shaping that was asked for, in the order that shaping.py names."""
    reward_N: list[NDArray[np.floating]] = [_scored(response.reward_T) for response in responses_N]
    if settings.reward_clip is not None:
        reward_N = [shaping.clip(reward_T, settings.reward_clip) for reward_T in reward_N]
    if settings.reward_scale != 1.0:
        reward_N = [shaping.scale(reward_T, settings.reward_scale) for reward_T in reward_N]
    if settings.reward_centre:
        reward_N = shaping.centre(reward_N)
    if settings.length_normalise:
        reward_N = [shaping.normalise_length(reward_T) for reward_T in reward_N]
    if settings.sft_potential is not None:
        reward_N = [
            shaping.add_potential(
                reward_T,
                shaping.likelihood_potential(_scored(response.logp_sft_T), settings.sft_potential),
                settings.gamma,
            )
            for reward_T, response in zip(reward_N, responses_N, strict=True)
        ]
    return reward_N


def _scored(array_T: Float32 | None) -> Float32:
    if array_T is None:
        raise TrainerError("a response without rewards is never learned")
    return array_T


def _pad(array_N: Sequence[NDArray[np.floating]], mask_N_T: NDArray[np.bool_]) -> NDArray[np.float64]:
    """float64 [N, T], 0 past each array's end."""
    padded_N_T = np.zeros(mask_N_T.shape)
    padded_N_T[mask_N_T] = np.concatenate(array_N)
    return padded_N_T
